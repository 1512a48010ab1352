"""Songs -> a dataset of shards: the Ray Data graph, one task per track.

A task reads one song and writes its shard under a temporary name, then renames it, or sends it to
object storage whole; the manifest is written last. So a killed run leaves whole shards and no
manifest, and the next run goes on from there. What is there already and still right is not done
again.
"""

import dataclasses
import errno
import functools
import json
import logging
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bsrnn_core.errors import BadInput
from data_prep.atomic import MARK, remove_stale
from data_prep.chunks import track_chunks
from data_prep.config import PrepConfig
from data_prep.manifest import (
    MANIFEST_NAME,
    Manifest,
    PreparedTrack,
    content_config,
    hash_of,
)
from data_prep.prepared import (
    SHARD,
    checksums,
    lengths_used,
    readable_header,
    shard_name,
    valid_header,
    valid_headers,
)
from data_prep.shard_header import ShardHeader
from data_prep.shards import shard_bytes, write_shard
from data_prep.storage import (
    Location,
    RemotePath,
    Unavailable,
    cache_folder,
    checksum,
    location,
    size_of,
    sizes,
)
from data_prep.tracks import (
    SPLITS,
    Track,
    find_tracks,
    fingerprint,
    inspect_track,
    looks_unchanged,
    read_references,
)


class DiskFull(BadInput):
    """No song is at fault, and leaving one out does not help."""


@dataclass(frozen=True, slots=True)
class Job:
    """A track whose shard is to be written, or at least to be looked at."""

    track: Track
    seconds: float
    """Duration of the song."""
    bytes: int
    """Size of the shard to write; 0 when it is there and only its checksum is missing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do."""

    config: PrepConfig
    folder: Location
    jobs: tuple[Job, ...]
    """Longest first, so that the workers end together."""
    kept: tuple[PreparedTrack, ...]
    """Tracks whose shards are there and still right."""
    left_out: dict[str, str]
    """Tracks ("split/name") that cannot be used, and why, as far as file headers tell."""

    @property
    def bytes(self) -> int:
        """Size of all shards to write."""
        return sum(job.bytes for job in self.jobs)

    @property
    def seconds(self) -> float:
        """Duration of all songs to prepare."""
        return sum(job.seconds for job in self.jobs)


@dataclass(frozen=True, slots=True)
class PrepProgress:
    """How far a run has come, told after every track."""

    track: str
    error: str | None
    """Why this track is left out, if it is."""
    done: int
    total: int
    seconds_done: float
    """Duration of the songs done so far."""


def prepare(
    config: PrepConfig, out: str | Location, progress: Callable[[PrepProgress], None] | None = None
) -> Manifest:
    """Prepare a dataset in the folder ``out``: ``plan_dataset``, then ``carry_out``."""
    return carry_out(plan_dataset(config, out), progress)


def plan_dataset(config: PrepConfig, out: str | Location) -> Plan:
    """Find the tracks, look at their headers, and see what is prepared already.

    Raises BadInput when no track is found or usable, or one is not usable while
    ``skip_bad_tracks`` is off.
    """
    folder = location(out)
    if isinstance(folder, Path):
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"{folder} is a file: give a folder for the shards with --out")
        remove_stale(folder)
    tracks = find_tracks(config.source)
    before = Manifest.read_if_there(folder)
    listed = {entry.shard: entry for entry in before.tracks} if before else {}
    there = sizes(folder, SHARD)
    jobs, kept, left_out = [], [], {}
    for track, header in zip(tracks, valid_headers(folder, tracks, config), strict=True):
        entry = listed.get(shard_name(track))
        stamps = entry.inputs if entry else header.inputs if header else {}
        unchanged = looks_unchanged(track, config.source.stem_names, stamps)
        if entry and header and unchanged and there.get(entry.shard) == entry.bytes:
            kept.append(entry)
        elif header and unchanged:
            jobs.append(Job(track, header.num_samples / config.stft.sample_rate, 0))
        else:
            try:
                jobs.append(_new_job(track, config))
            except BadInput as error:
                left_out[f"{track.split}/{track.name}"] = str(error)
    _judge(config, left_out, num_tracks=len(tracks))
    jobs.sort(key=lambda job: -job.seconds)
    return Plan(config, folder, tuple(jobs), tuple(kept), left_out)


def carry_out(
    plan: Plan,
    progress: Callable[[PrepProgress], None] | None = None,
    num_tasks: int | None = None,
) -> Manifest:
    """Do what is planned, on Ray, and write the manifest.

    ``num_tasks`` tracks at most are in work at once, each in one task's memory (one per CPU of Ray
    when not given).
    Shards of tracks that are no longer part of the dataset are removed. Raises BadInput when the
    disk has no room, or when a track turns out unusable while ``skip_bad_tracks`` is off: what is
    running then comes to its end, nothing new is begun, and there is no manifest.
    """
    _require_room(plan)
    plan.folder.mkdir(parents=True, exist_ok=True)
    prepared, left_out, seconds = list(plan.kept), dict(plan.left_out), 0.0
    if plan.jobs:
        (plan.folder / MANIFEST_NAME).unlink(missing_ok=True)
    stop = plan.folder / f".stop{MARK}{socket.gethostname()}.{os.getpid()}"
    stop.unlink(missing_ok=True)
    try:
        for done, (job, error, result) in enumerate(_run_on_ray(plan, stop, num_tasks), 1):
            seconds += job.seconds
            name = f"{job.track.split}/{job.track.name}"
            if result:
                prepared.append(result)
            elif error:
                left_out[name] = error
                if not plan.config.source.skip_bad_tracks:
                    stop.touch()
            if progress:
                progress(PrepProgress(name, error, done, len(plan.jobs), seconds))
    finally:
        stop.unlink(missing_ok=True)
    _judge(plan.config, left_out, num_tracks=len(prepared) + len(left_out))
    return _finish(plan, prepared, left_out)


def prepare_track(track: Track, config: PrepConfig, folder: Location) -> PreparedTrack:
    """Write the shard of one track into ``folder`` unless it is there and made of the same bytes.

    Raises BadInput when the track cannot be used, DiskFull when there is no room for it.
    """
    stems, path = config.source.stem_names, folder / shard_name(track)
    inputs = fingerprint(track, stems)
    header = valid_header(folder, track, config)
    if header is not None and checksums(header.inputs) == checksums(inputs):
        size, sha256 = size_of(path) or 0, checksum(path)
    else:
        rate = config.stft.sample_rate
        references, _ = read_references(
            track, stems, sample_rate=rate, lengths=config.source.lengths
        )
        header = ShardHeader(
            config_hash=hash_of(content_config(config)),
            track=track.name,
            split=track.split,
            stems=stems,
            dtype=config.chunk.dtype,
            shape=(config.chunk_frames, references.shape[1], config.stft.num_bins, 2),
            num_samples=references.shape[-1],
            lengths=lengths_used(track, config),
            inputs=inputs,
        )
        try:
            size, sha256 = write_shard(path, header, track_chunks(references, config))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                place = folder if isinstance(folder, Path) else cache_folder()
                raise DiskFull(f"the disk of {place} is full: make room, then run again") from error
            raise
    return PreparedTrack(
        name=track.name,
        split=track.split,
        num_samples=header.num_samples,
        channels=header.shape[1],
        shard=shard_name(track),
        rows=math.ceil(config.stft.num_frames(header.num_samples) / config.chunk_frames),
        bytes=size,
        sha256=sha256,
        inputs=inputs,
    )


def _run_on_ray(
    plan: Plan, stop: Location, num_tasks: int | None
) -> Iterator[tuple[Job, str | None, PreparedTrack | None]]:
    """Each job with what came of it, as they end; neither error nor result when it was stopped.

    Raises DiskFull after what is running has come to its end.
    """
    if not plan.jobs:
        return
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # Or it warns that the progress bars are off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    items = [{"index": i, **dataclasses.asdict(job.track)} for i, job in enumerate(plan.jobs)]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset.context.enable_progress_bars = False
    task = functools.partial(_task, config=plan.config, folder=plan.folder, stop=stop)
    strategy = ray.data.TaskPoolStrategy(size=min(num_tasks or len(items), len(items)))
    full = ""
    for row in dataset.map(task, compute=strategy).iter_rows():
        if row["full"]:
            full = row["full"]
            stop.touch()
        result = PreparedTrack.from_dict(json.loads(row["result"])) if row["result"] else None
        yield plan.jobs[row["index"]], row["error"] or None, result
    if full:
        raise DiskFull(full)


def _task(
    row: dict[str, Any], config: PrepConfig, folder: Location, stop: Location
) -> dict[str, Any]:
    """Prepare the track of a row, on one core."""
    answer = {"index": row["index"], "error": "", "full": "", "result": ""}
    if stop.exists():
        return answer
    torch.set_num_threads(1)
    track = Track(row["name"], row["split"], row["path"])
    try:
        result = prepare_track(track, config, folder)
    except (DiskFull, Unavailable) as error:
        return {**answer, "full": str(error)}
    except BadInput as error:
        return {**answer, "error": str(error)}
    return {**answer, "result": json.dumps(dataclasses.asdict(result))}


def _finish(plan: Plan, prepared: list[PreparedTrack], left_out: dict[str, str]) -> Manifest:
    """Write the manifest unless it says the same already, and remove the shards not in it."""
    manifest = Manifest.of(plan.config, prepared, left_out)
    if Manifest.read_if_there(plan.folder) != manifest:
        manifest.write(plan.folder)
    wanted = {track.shard for track in manifest.tracks}
    for shard in sizes(plan.folder, SHARD):
        folder, _, name = shard.partition("/")
        path = plan.folder / shard
        if shard not in wanted and folder in SPLITS and "/" not in name and readable_header(path):
            path.unlink()
    return manifest


def _judge(config: PrepConfig, left_out: dict[str, str], num_tracks: int) -> None:
    """Raises BadInput when the tracks left out end the run."""
    if not left_out:
        return
    first = next(iter(left_out.values()))
    if not config.source.skip_bad_tracks:
        others = f"; {len(left_out) - 1} more cannot be used either" if len(left_out) > 1 else ""
        raise BadInput(f"{first}{others} (--skip_bad_tracks goes on without)")
    if len(left_out) == num_tracks:
        raise BadInput(f"none of the {num_tracks} tracks can be used; the first: {first}")


def _require_room(plan: Plan) -> None:
    if isinstance(plan.folder, RemotePath):
        return
    there = next(path for path in (plan.folder, *plan.folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if plan.bytes > free:
        raise BadInput(
            f"the shards take {plan.bytes / 1e9:.2f} GB and {there} has {free / 1e9:.2f} GB free: "
            "make room, choose another --out, or take fewer songs with --portion"
        )


def _new_job(track: Track, config: PrepConfig) -> Job:
    """Size and duration from headers alone."""
    source, stft = config.source, config.stft
    info = inspect_track(track, source.stem_names, source.lengths)
    num_samples = math.ceil(info.num_samples * stft.sample_rate / info.sample_rate)
    rows = math.ceil(stft.num_frames(num_samples) / config.chunk_frames)
    shape = (config.chunk_frames, info.channels, stft.num_bins, 2)
    size = shard_bytes(rows, len(source.stem_names), shape, config.chunk.dtype)
    return Job(track, info.num_samples / info.sample_rate, size)
