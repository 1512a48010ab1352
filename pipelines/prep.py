"""Turn songs into shards of training data, a Ray task per song.

    bsrnn prep --musdbhq_location musdb18hq --out shards
    ray job submit -- python pipelines/prep.py --musdbhq_location /data/music --out /data/shards

Run again, it prepares only what is missing or has changed. ``--verify`` compares every shard with
its checksum, ``--repair`` also writes anew what is broken.
"""

import dataclasses
import logging
import sys
import time
from dataclasses import dataclass, field

from bsrnn_core.config import StftConfig
from bsrnn_core.errors import BadInput
from data_prep.config import ChunkConfig, PrepConfig, SourceConfig
from data_prep.manifest import Manifest
from data_prep.prepare import Plan, PrepProgress, carry_out, plan_dataset
from data_prep.storage import Location, location
from data_prep.tracks import SPLITS
from data_prep.verify import broken_shards, remove_broken
from pipelines import display
from pipelines.launch import parallel_tasks, start_ray

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepCommandConfig:
    """Options of `bsrnn prep`."""

    out: str = "shards"
    """Folder for the shards, or s3://bucket/folder."""
    verify: bool = False
    """Only see whether all shards are still as they were prepared."""
    repair: bool = False
    """The same, and write those anew that are not."""
    source: SourceConfig = field(default_factory=SourceConfig)
    stft: StftConfig = field(default_factory=StftConfig)
    chunk: ChunkConfig = field(default_factory=ChunkConfig)


def run(config: PrepCommandConfig) -> None:
    """Prepare, or only look at, the dataset that ``config`` describes.

    Raises BadInput when that cannot be done, and when ``verify`` finds a shard broken.
    """
    if config.verify or config.repair:
        _verify(config)
        return
    prep = PrepConfig(source=config.source, stft=config.stft, chunk=config.chunk)
    prepare_shards(prep, config.out)


def _verify(config: PrepCommandConfig) -> None:
    folder = location(config.out)
    manifest = Manifest.read(folder)
    size = sum(track.bytes for track in manifest.tracks)
    with display.progress(counted=False) as bar:
        task = bar.add_task("verifying", total=size, rate="")
        broken = broken_shards(folder, lambda done: bar.advance(task, done))
    for shard in broken:
        logger.warning("%s: %s", shard.path, shard.why)
    if not broken:
        logger.info("all %d shards in %s are as prepared", len(manifest.tracks), folder)
        return
    if not config.repair:
        raise BadInput(
            f"{len(broken)} of {len(manifest.tracks)} shards in {folder} are broken, such as "
            f"{broken[0].path} ({broken[0].why}): --repair writes them anew"
        )
    prep = manifest.prep_config
    music = config.source.musdbhq_location or prep.source.musdbhq_location
    prep = dataclasses.replace(
        prep, source=dataclasses.replace(prep.source, musdbhq_location=music)
    )
    # The songs must be there before anything is removed.
    plan_dataset(prep, folder)
    remove_broken(broken)
    prepare_shards(prep, folder)


def prepare_shards(config: PrepConfig, out: str | Location) -> Manifest:
    """Prepare a dataset in the folder ``out`` and tell the terminal how it goes.

    Starts Ray when there is something to do and it does not run yet. Raises BadInput when no track
    is found or usable, or the disk has no room.
    """
    plan = plan_dataset(config, out)
    logger.info(
        "%d songs to prepare (%.0f s of music), %d there already; takes %.2f GB in %s",
        len(plan.jobs),
        plan.seconds,
        len(plan.kept),
        plan.bytes / 1e9,
        plan.folder,
    )
    started = time.monotonic()
    manifest = _carry_out_with_progress(plan) if plan.jobs else carry_out(plan)
    for track, reason in manifest.left_out.items():
        logger.warning("left out %s: %s", track, reason)
    _show_summary(manifest, plan, time.monotonic() - started)
    return manifest


def _carry_out_with_progress(plan: Plan) -> Manifest:
    start_ray()
    with display.progress(counted=False) as bar:
        task = bar.add_task("preparing", total=plan.seconds, rate="")
        started = time.monotonic()

        def show(progress: PrepProgress) -> None:
            rate = display.times_real_time(progress.seconds_done, time.monotonic() - started)
            bar.update(
                task,
                completed=progress.seconds_done,
                description=f"prepared {progress.done}/{progress.total} songs",
                rate=rate,
            )

        # The longest song's stems, decoded, resampled and mixed.
        task_bytes = 2 * max(job.bytes for job in plan.jobs)
        return carry_out(plan, show, num_tasks=parallel_tasks(task_bytes, waiting=1))


def _show_summary(manifest: Manifest, plan: Plan, wall_seconds: float) -> None:
    rows: list[list[display.Cell]] = []
    for split in SPLITS:
        tracks = [track for track in manifest.tracks if track.split == split]
        seconds = sum(track.num_samples for track in tracks) / plan.config.stft.sample_rate
        chunks, size = sum(t.rows for t in tracks), sum(t.bytes for t in tracks)
        rows.append([split, len(tracks), chunks, seconds, size / 1e9])
    display.show(str(plan.folder), ("split", "songs", "chunks", "seconds", "GB"), rows)
    if plan.jobs:
        logger.info(
            "prepared %d songs in %.1f s, %s",
            len(plan.jobs),
            wall_seconds,
            display.times_real_time(plan.seconds, wall_seconds),
        )
    if not any(track.split == "train" for track in manifest.tracks):
        logger.warning("there is no song to train on")


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["prep", *sys.argv[1:]]))
