"""Which shards are there already and would be written the same: what `bsrnn prep` need not do."""

from concurrent.futures import ThreadPoolExecutor

from bsrnn_core.errors import BadInput
from data_prep.config import PrepConfig
from data_prep.manifest import content_config, hash_of
from data_prep.shard_header import ShardHeader, read_header
from data_prep.storage import Location, Unavailable
from data_prep.tracks import FileStamp, Track, inspect_track

SHARD = ".parquet"
"""What the names of shards end with."""


def shard_name(track: Track) -> str:
    """Where a track's shard is in its dataset."""
    return f"{track.split}/{track.name}{SHARD}"


def readable_header(path: Location) -> ShardHeader | None:
    """The header of a shard, None where there is no whole one."""
    try:
        return read_header(path)
    except Unavailable:
        raise
    except BadInput:
        return None


def valid_header(folder: Location, track: Track, config: PrepConfig) -> ShardHeader | None:
    """The header of a track's shard if this configuration would write the same."""
    header = readable_header(folder / shard_name(track))
    if header is None or header.config_hash != hash_of(content_config(config)):
        return None
    fits = header.lengths in ("equal", config.source.lengths)
    return header if fits else None


def valid_headers(
    folder: Location, tracks: list[Track], config: PrepConfig
) -> list[ShardHeader | None]:
    """The same of many tracks: in threads, for object storage takes its time with each."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(lambda track: valid_header(folder, track, config), tracks))


def lengths_used(track: Track, config: PrepConfig) -> str:
    """ "equal" where ``lengths`` made no difference, so that changing it leaves the shard alone."""
    try:
        inspect_track(track, config.source.stem_names, "refuse")
    except BadInput:
        return config.source.lengths
    return "equal"


def checksums(inputs: dict[str, FileStamp]) -> dict[str, str]:
    """The checksums alone."""
    return {name: stamp.sha256 for name, stamp in inputs.items()}
