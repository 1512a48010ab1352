"""Objects in the tests' object storage."""

from data_prep.storage import RemotePath, location, whole


def remote_at(text: str) -> RemotePath:
    found = location(text)
    assert isinstance(found, RemotePath)
    return found


def write(remote: RemotePath, content: bytes) -> None:
    with whole(remote) as file:
        file.write_bytes(content)


def read(remote: RemotePath) -> bytes:
    with remote.open() as file:
        return file.read()
