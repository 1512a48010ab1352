"""Files on a disk or in object storage: `s3://bucket/shards` beside `/data/shards`.

pyarrow's own filesystems reach S3 and whatever speaks its protocol (AWS_ENDPOINT_URL names the
server), and Google's `gs://`; credentials come from where their clients look for them. This file
alone knows them. An object is written in one go: it appears whole or not at all.
"""

import errno
import functools
import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Self, cast
from urllib.parse import quote

from bsrnn_core.errors import BadInput
from data_prep.atomic import AtomicPath, remove_stale

if TYPE_CHECKING:
    # Imported where it is needed: a command line that names local folders does without.
    from pyarrow import fs

SCHEMES = ("s3", "gs")
HEAD_BYTES, BLOCK_BYTES = 2**16, 2**24
FULL = (errno.ENOSPC, errno.EDQUOT)
_REASONS = {
    "NO_SUCH_BUCKET": "there is no such bucket",
    "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|TOKEN|UNAUTHENTICATED|PERMISSION_DENIED": (
        "access is denied: set credentials that may use it (AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or a role; for gs:// GOOGLE_APPLICATION_CREDENTIALS)"
    ),
    "NETWORK_CONNECTION|UNAVAILABLE|RESOLVE_HOST": (
        "the storage cannot be reached (AWS_ENDPOINT_URL names a server of your own)"
    ),
}
"""What to say where pyarrow's message holds one of these."""


class Unavailable(BadInput):
    """The storage refuses, or cannot be reached: nothing is known of what it holds."""


@dataclass(frozen=True, slots=True)
class RemotePath:
    """An object, or the beginning that several share as if in a folder, used like a Path.

    All methods raise Unavailable, naming the URI, where the storage refuses or cannot be reached.
    """

    scheme: str
    path: str
    """Bucket and key."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def __truediv__(self, name: str) -> Self:
        return type(self)(self.scheme, f"{self.path}/{name}")

    @property
    def name(self) -> str:
        """The last part of the key."""
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> Self:
        """What it lies in."""
        return type(self)(self.scheme, str(PurePosixPath(self.path).parent))

    @property
    def bucket(self) -> str:
        """The first part of the path."""
        return self.path.partition("/")[0]

    @property
    def uri(self) -> str:
        """The same as ``str``, with the signs masked that have a meaning in a URI."""
        return f"{self.scheme}://{quote(self.path)}"

    def size(self) -> int | None:
        """Bytes of the object, None where there is none."""
        info = self._info()
        return info.size if info.is_file else None

    def exists(self) -> bool:
        """Whether there is such an object."""
        return self.size() is not None

    def version(self) -> str | None:
        """A name for what the object holds now: size, time and first bytes; None without one."""
        info = self._info()
        if not info.is_file:
            return None
        changed = info.mtime.isoformat() if isinstance(info.mtime, datetime) else ""
        with self._explained(), self.open() as file:
            head = file.read(HEAD_BYTES)
        return f"{info.size}-{changed}-{hashlib.sha256(head).hexdigest()}"

    def open(self) -> BinaryIO:
        """The object to be read, of which only the parts are fetched that are asked for."""
        with self._explained():
            return cast(BinaryIO, self._filesystem().open_input_file(self.path))

    def read_text(self, encoding: str = "utf-8") -> str:
        """What the object holds."""
        with self._explained(), self.open() as file:
            return file.read().decode(encoding)

    def touch(self) -> None:
        """Make an empty object."""
        with self._explained(), self._filesystem().open_output_stream(self.path):
            pass

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        if missing_ok and not self.exists():
            return
        with self._explained():
            self._filesystem().delete_file(self.path)

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Nothing: object storage has no folders. Raises Unavailable when there is no bucket."""
        from pyarrow.fs import FileType

        if self._info(self.bucket).type == FileType.NotFound:
            raise Unavailable(f"{self}: there is no bucket {self.bucket}")

    def sizes(self) -> dict[str, int]:
        """The bytes of every object below, by its path from here."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.path, allow_not_found=True, recursive=True)
        with self._explained():
            found = self._filesystem().get_file_info(selector)
        first = len(self.path) + 1
        return {i.path[first:]: i.size for i in found if i.is_file}

    def fetch(self, file: Path) -> None:
        """Copy the object into a local file, which is not whole until this returns."""
        with self._explained(), self.open() as source, file.open("wb") as copy:
            while block := source.read(BLOCK_BYTES):
                copy.write(block)

    def send(self, file: Path) -> None:
        """Put a local file in the place of the object, at once when all has arrived."""
        # A stream that is left by an exception makes an object of what it was given so far, so
        # Ctrl-C must not come between: it does not reach other threads.
        with ThreadPoolExecutor(1) as thread, self._explained():
            thread.submit(self._send, file).result()

    def _send(self, file: Path) -> None:
        from pyarrow import OSFile

        # Not with pyarrow's copy_files, which does not say when the end of an upload fails.
        stream = self._filesystem().open_output_stream(self.path)
        with OSFile(str(file)) as source:
            while block := source.read_buffer(BLOCK_BYTES):
                stream.write(block)
        stream.close()

    def _filesystem(self) -> "fs.FileSystem":
        return _filesystem(self.scheme, self.bucket)

    def _info(self, path: str | None = None) -> "fs.FileInfo":
        with self._explained():
            return cast("fs.FileInfo", self._filesystem().get_file_info(path or self.path))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what pyarrow raises into one sentence."""
        try:
            yield
        except FileNotFoundError as error:
            self.mkdir()
            raise BadInput(f"{self}: there is no such object") from error
        except BadInput:
            raise
        except (OSError, ValueError) as error:  # pyarrow's own are among them
            if getattr(error, "errno", None) in FULL:
                raise BadInput(_no_room(self)) from error
            raise Unavailable(f"{self} cannot be used: {_reason(error)}") from error


Location = Path | RemotePath


def _no_room(path: RemotePath) -> str:
    return (
        f"{path} cannot be copied, for the disk of {cache_folder()} is full: make room, or name a "
        "folder with room in BSRNN_CACHE"
    )


def _reason(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    # Names of files may hold anything.
    unquoted = re.sub("'[^']*'", "", text)
    for pattern, reason in _REASONS.items():
        if re.search(pattern, unquoted):
            return reason
    return text


@functools.lru_cache(maxsize=16)
def _filesystem(scheme: str, bucket: str) -> "fs.FileSystem":
    from pyarrow.fs import FileSystem

    # Made from the bucket alone: a key may hold what has a meaning in a URI.
    return FileSystem.from_uri(f"{scheme}://{bucket}")[0]


def is_remote(text: str | os.PathLike[str]) -> bool:
    """Whether this names something in object storage."""
    return "://" in str(text)


def location(text: str | os.PathLike[str] | RemotePath) -> Location:
    """What a text from the user names: an absolute local path, or one in object storage.

    Raises BadInput for a URI of another kind.
    """
    if isinstance(text, RemotePath):
        return text
    if not is_remote(text):
        return Path(text).expanduser().absolute()
    scheme, _, rest = str(text).partition("://")
    path = re.sub("/+", "/", rest).strip("/")
    if scheme not in SCHEMES:
        kinds = " or ".join(f"{known}://bucket/folder" for known in SCHEMES)
        raise BadInput(f"{text}: give a local folder, or {kinds}")
    if not path or rest.startswith("/") or "@" in path.partition("/")[0]:
        raise BadInput(f"{text} names no bucket: write {scheme}://bucket/folder")
    return RemotePath(scheme, path)


def absolute(text: str) -> str:
    """The same place, from whatever folder it is looked at. Raises BadInput as ``location``."""
    return str(location(text)) if is_remote(text) else str(Path(text).expanduser().resolve())


def local_only(text: str, option: str) -> Path:
    """A path that must be one of this machine. Raises BadInput for a URI."""
    if is_remote(text):
        raise BadInput(f"--{option} takes a local file or folder, not {text}")
    return Path(text)


def size_of(path: Location) -> int | None:
    """Bytes of a file or object, None where there is none."""
    if isinstance(path, RemotePath):
        return path.size()
    return path.stat().st_size if path.is_file() else None


def sizes(folder: Location, ending: str) -> dict[str, int]:
    """The bytes of every file below ``folder`` that ends so, by its path from there."""
    if isinstance(folder, RemotePath):
        return {name: size for name, size in folder.sizes().items() if name.endswith(ending)}
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob(f"*{ending}")
        if path.is_file()
    }


def checksum(path: Location) -> str:
    """SHA-256 of a file or object."""
    with path.open() if isinstance(path, RemotePath) else path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
        return digest.hexdigest()


@contextmanager
def whole(path: Location) -> Iterator[Path]:
    """Write to the local file it gives: on a clean exit it stands at ``path``, whole, and after an
    error nothing has changed."""
    if isinstance(path, Path):
        with AtomicPath(path) as unfinished:
            yield unfinished
        return
    unsent = cache_folder() / "unsent"
    unsent.mkdir(parents=True, exist_ok=True)
    remove_stale(unsent)
    file = AtomicPath(unsent / key_of(str(path))).temporary
    try:
        yield file
        path.send(file)
    except OSError as error:
        if error.errno in FULL:
            raise BadInput(_no_room(path)) from error
        raise
    finally:
        file.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where this machine keeps its copies of what is remote: BSRNN_CACHE, or ~/.cache/bsrnn."""
    named = os.environ.get("BSRNN_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bsrnn"


def key_of(*texts: str) -> str:
    """A file name that stands for texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32]
