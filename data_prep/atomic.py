"""Files that are whole whenever they are there: written under a temporary name, then renamed."""

import os
import socket
from pathlib import Path
from types import TracebackType

MARK = ".tmp."


class AtomicPath:
    """A context manager: write to the path it gives, and on a clean exit it takes its real name.

    The data is on the disk before the name changes. After an error nothing is left. A process that
    is killed leaves the temporary file behind, for ``remove_stale`` to find by host and process id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f"{path.name}{MARK}{socket.gethostname()}.{os.getpid()}")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                _flush(self.temporary)
                self.temporary.replace(self.path)
                _flush(self.path.parent)
        finally:
            self.temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Make ``path`` hold a text, whole or not at all."""
    with AtomicPath(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def remove_stale(folder: Path) -> None:
    """Remove the temporary files below ``folder`` whose writer was on this host and is no more."""
    for path in folder.rglob(f"*{MARK}*"):
        host, _, process = path.name.rpartition(MARK)[2].rpartition(".")
        if host == socket.gethostname() and process.isdecimal() and not _alive(int(process)):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
