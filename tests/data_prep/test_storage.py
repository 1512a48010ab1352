"""Object storage, played by moto's S3 server on the loopback interface: paths, objects, errors."""

import http.server
import itertools
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bsrnn_core.errors import BadInput
from data_prep import storage
from data_prep.storage import RemotePath, Unavailable, cache_folder, checksum, location, whole
from pipelines.cli import main
from tests.remote import read, remote_at, write

pytestmark = pytest.mark.usefixtures("empty_cache")


def test_an_object_is_used_like_a_file(remote: RemotePath, tmp_path: Path, empty_cache: Path):
    file = remote / "b c" / "x.bin"
    assert (file.name, file.parent) == ("x.bin", remote / "b c")
    assert file.size() is file.version() is None
    content = os.urandom(100_000)
    write(file, content)
    assert (file.exists(), file.size(), read(file)) == (True, 100_000, content)
    assert checksum(file) == checksum_of(content, tmp_path)
    assert remote.sizes() == {"b c/x.bin": 100_000}
    file.fetch(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    (remote / "empty").touch()
    assert (remote / "empty").size() == 0
    file.unlink()
    file.unlink(missing_ok=True)
    assert remote.sizes() == {"empty": 0}
    assert [path for path in empty_cache.rglob("*") if path.is_file()] == []


def checksum_of(content: bytes, folder: Path) -> str:
    (folder / "content").write_bytes(content)
    return checksum(folder / "content")


def test_another_content_is_another_version(remote: RemotePath):
    """At once, though the times of objects are whole seconds and the size stays the same."""
    versions = []
    for letter in b"abc":
        write(remote / "x", bytes([letter]) * 1000)
        versions.append((remote / "x").version())
        assert (remote / "x").version() == versions[-1]
    assert len(set(versions)) == 3


def test_a_uri_is_told_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert location("runs") == tmp_path / "runs"
    assert str(location("s3://bucket//runs/")) == "s3://bucket/runs"
    assert str(location("gs://bucket")) == "gs://bucket"
    for text in ("s3://", "s3:///runs", "s3://key:secret@bucket/runs", "http://x/y", "file:///x"):
        with pytest.raises(BadInput, match=text):
            location(text)


def test_the_cache_is_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("BSRNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "bsrnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "bsrnn"


# --- what goes wrong ------------------------------------------------------------------------


def test_what_is_missing_is_named(remote: RemotePath):
    with pytest.raises(BadInput, match=r"none: there is no such object"):
        (remote / "none").read_text()
    nowhere = remote_at("s3://no-such-bucket-here/x")
    for action in (nowhere.read_text, nowhere.touch, nowhere.mkdir, nowhere.open):
        with pytest.raises(Unavailable, match=r"s3://no-such-bucket-here/x.*no .*bucket"):
            action()


class Denied(http.server.BaseHTTPRequestHandler):
    """Answers as S3 does to those whom it does not know."""

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def test_missing_credentials_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Denied) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        words = ["mtl", "--shards", "s3://private/shards", "--name", "x", "--out", str(tmp_path)]
        assert main(words) == 2
        assert main(["prep", "--out", "s3://private-too/shards", "--verify"]) == 2
        server.shutdown()
    said = capsys.readouterr().err
    assert said.count("access is denied: set credentials") == 2
    assert "s3://private/shards/manifest.json" in said
    assert "Traceback" not in said


def test_a_storage_that_is_away_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(Unavailable, match=r"s3://away/x cannot be used: the storage cannot"):
            remote_at("s3://away/x").size()


def test_a_full_disk_is_one_sentence(remote: RemotePath):
    write(remote / "x", b"something")
    with pytest.raises(BadInput, match=r"x cannot be copied, for the disk of .* is full.*BSRNN_C"):
        (remote / "x").fetch(Path("/dev/full"))


@contextmanager
def cut_line(to: str, after_bytes: int) -> Iterator[str]:
    """The address of a line to a server that is cut for good after so many bytes to it."""
    host, _, port = to.removeprefix("http://").partition(":")
    sent = itertools.count()
    total, lock = [0], threading.Lock()

    def pump(source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while block := source.recv(65536):
                if counted:
                    with lock:
                        total[0] += len(block)
                if total[0] > after_bytes:
                    break
                sink.sendall(block)
        except OSError:
            pass
        for end in (source, sink):
            end.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                while True:
                    client, _ = listener.accept()
                    next(sent)
                    server = socket.create_connection((host, int(port)))
                    for args in ((client, server, True), (server, client, False)):
                        threading.Thread(target=pump, args=args, daemon=True).start()
            except OSError:
                return

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.proof
def test_an_upload_that_is_cut_short_changes_nothing(
    remote: RemotePath, object_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(remote / "x", b"before")
    (tmp_path / "new").write_bytes(os.urandom(30_000_000))
    with cut_line(object_store, 15_000_000) as address, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        storage._filesystem.cache_clear()
        with pytest.raises(Unavailable, match="cannot be reached"):
            (remote / "x").send(tmp_path / "new")
    storage._filesystem.cache_clear()
    assert read(remote / "x") == b"before"
    (remote / "x").send(tmp_path / "new")
    assert (remote / "x").size() == 30_000_000


def test_an_error_while_writing_changes_nothing(remote: RemotePath, empty_cache: Path):
    write(remote / "x", b"before")
    with pytest.raises(RuntimeError), whole(remote / "x") as file:
        file.write_bytes(b"half")
        raise RuntimeError
    assert read(remote / "x") == b"before"
    assert list((empty_cache / "unsent").iterdir()) == []
