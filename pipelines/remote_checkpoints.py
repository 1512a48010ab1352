"""Checkpoint folders in object storage, where only single objects are replaced all at once.

So a run's `best` is one object there, `best.tar` (an uncompressed tar of its files). A checkpoint
folder that was copied there file by file is read as well.
"""

import shutil
import tarfile
from pathlib import Path

from bsrnn_core.checkpoint import CONFIG_FILE, existing_folder, replace_folder
from bsrnn_core.errors import BadInput
from data_prep.cache import locked
from data_prep.storage import RemotePath, cache_folder, key_of, location, whole


def archive_of(folder: RemotePath) -> RemotePath:
    """The object that a checkpoint folder is kept in."""
    return folder.parent / f"{folder.name}.tar"


def send_checkpoint(folder: Path, remote: RemotePath) -> None:
    """Put a local checkpoint in the place of the one in ``archive_of(remote)``."""
    found = existing_folder(folder)
    assert found is not None, folder
    # What tells one checkpoint from another comes first: RemotePath.version looks at it.
    files = sorted(found.iterdir(), key=lambda file: (file.name != CONFIG_FILE, file.name))
    with whole(archive_of(remote)) as unsent, tarfile.open(unsent, "w") as archive:
        for file in files:
            archive.add(file, file.name)


def fetch_checkpoint(remote: RemotePath, folder: Path) -> None:
    """Put the checkpoint of ``archive_of(remote)`` in the place of a local one.

    Raises BadInput when it is not there or damaged.
    """

    def unpack(new: Path) -> None:
        packed, archived = new.with_name(f"{new.name}.tar"), archive_of(remote)
        try:
            before = None
            # It comes in pieces, and may be replaced between two of them.
            while before is None or archived.version() != before:
                before = archived.version()
                archived.fetch(packed)
            with tarfile.open(packed) as archive:
                archive.extractall(new, filter="data")
        except tarfile.TarError as error:
            raise BadInput(f"{archived} is damaged ({error})") from error
        finally:
            packed.unlink(missing_ok=True)

    replace_folder(folder, unpack)


def local_checkpoint(checkpoint: str | Path) -> Path:
    """A checkpoint's folder on this machine, to which it is copied first where it is remote.

    Raises BadInput when there is none in object storage.
    """
    remote = location(checkpoint)
    if not isinstance(remote, RemotePath):
        return Path(checkpoint)
    version = archive_of(remote).version()
    files = {} if version else remote.sizes()
    if version is None:
        if CONFIG_FILE not in files:
            raise BadInput(f"{checkpoint}: there is no such checkpoint, nor {archive_of(remote)}")
        version = f"{files} {(remote / CONFIG_FILE).version()}"
    # A folder for each version: others may be reading the one before.
    folder = cache_folder() / "checkpoints" / key_of(str(remote), version) / remote.name
    with locked(str(folder)):
        if not folder.is_dir() and files:
            replace_folder(folder, lambda new: _fetch_files(remote, list(files), new))
        elif not folder.is_dir():
            fetch_checkpoint(remote, folder)
    return folder


def _fetch_files(remote: RemotePath, names: list[str], folder: Path) -> None:
    for name in names:
        if "/" not in name:
            (remote / name).fetch(folder / name)


def forget(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
