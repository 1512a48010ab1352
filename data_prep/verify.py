"""Is a dataset still what was prepared? Every shard against the checksum in the manifest."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bsrnn_core.errors import BadInput
from data_prep.manifest import Manifest, PreparedTrack
from data_prep.storage import Location, checksum, location, size_of


@dataclass(frozen=True, slots=True)
class BrokenShard:
    """A shard that is not as it was prepared."""

    path: Location
    why: str


def broken_shards(
    folder: str | Location, progress: Callable[[int], None] = lambda size: None
) -> list[BrokenShard]:
    """The shards of a dataset that are missing or hold other bytes, in the manifest's order.

    ``progress`` is called with the bytes of every shard that was looked at. Raises BadInput when
    ``folder`` has no manifest of this version.
    """
    root = location(folder)
    tracks = Manifest.read(root).tracks

    def look(track: PreparedTrack) -> BrokenShard | None:
        why = _fault(root / track.shard, track)
        progress(track.bytes)
        return BrokenShard(root / track.shard, why) if why else None

    # Threads, for hashing and reading leave the interpreter to others.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return [broken for broken in threads.map(look, tracks) if broken]


def _fault(path: Location, track: PreparedTrack) -> str:
    try:
        size = size_of(path)
        if size is None:
            return "it is missing"
        if size != track.bytes:
            return f"it has {size} bytes and should have {track.bytes}"
        return "" if checksum(path) == track.sha256 else "it holds other bytes than were written"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def remove_broken(broken: list[BrokenShard]) -> None:
    """Remove shards, so that preparing the dataset again writes them anew."""
    for shard in broken:
        try:
            shard.path.unlink(missing_ok=True)
        except OSError as error:
            raise BadInput(f"{shard.path} cannot be removed ({error.strerror})") from error
