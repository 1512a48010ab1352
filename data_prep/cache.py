"""A machine's copies of shards in object storage, shared by all of its processes.

A copy is named after its checksum, so that datasets and their versions never mix, and is whole
when it is there. All of it may be removed when nothing runs.
"""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from bsrnn_core.errors import BadInput
from data_prep.atomic import AtomicPath, remove_stale
from data_prep.manifest import PreparedTrack
from data_prep.storage import Location, cache_folder, checksum, key_of, size_of

FETCHES_AT_ONCE = 8
"""Shards copied at the same time: one stream alone does not fill a fast network."""


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Only one process or thread of this machine at a time does what concerns ``name``."""
    # A few hundred lock files for all names: they stay, for one that is removed locks nobody out.
    file = cache_folder() / "locks" / key_of(name)[:2]
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        with suppress(OSError):  # a network file system may lock nothing: then twice is done
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def local_shard(folder: Location, track: PreparedTrack) -> Path:
    """The file of a track's shard, copied to this machine first where the dataset is remote.

    Raises BadInput when it is not there or holds other bytes than the manifest says.
    """
    if isinstance(folder, Path):
        return folder / track.shard
    copy = _copy(track)
    if size_of(copy) == track.bytes:
        return copy
    source = folder / track.shard
    with locked(track.sha256):
        if size_of(copy) != track.bytes:
            with AtomicPath(copy) as unfinished:
                source.fetch(unfinished)
                if checksum(unfinished) != track.sha256:
                    raise BadInput(
                        f"{source} holds other bytes than were prepared: `bsrnn prep --repair` "
                        "writes it anew"
                    )
    return copy


def fetch_shards(folder: Location, tracks: Iterable[PreparedTrack]) -> None:
    """Copy all shards that this machine lacks, several at a time.

    Raises BadInput as ``local_shard`` does, and before anything is copied when the disk has no
    room.
    """
    if isinstance(folder, Path):
        return
    missing = [track for track in tracks if size_of(_copy(track)) != track.bytes]
    if not missing:
        return
    shards = _copy(missing[0]).parent
    shards.mkdir(parents=True, exist_ok=True)
    remove_stale(shards)
    needed, free = sum(track.bytes for track in missing), shutil.disk_usage(shards).free
    if needed > free:
        raise BadInput(
            f"the copies of {folder} take {needed / 1e9:.2f} GB more and {shards} has "
            f"{free / 1e9:.2f} GB free: make room, or name a folder with room in BSRNN_CACHE"
        )
    with ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix="fetch") as threads:
        for _ in threads.map(lambda track: local_shard(folder, track), missing):
            pass


def _copy(track: PreparedTrack) -> Path:
    return cache_folder() / "shards" / f"{track.sha256}.parquet"
