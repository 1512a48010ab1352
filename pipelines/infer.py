"""Separate songs into their stems, in memory that does not grow with a song.

bsrnn infer --checkpoint_fp runs/demo/best --input song.mp3 --out stems
"""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.progress import Progress

from bsrnn_core.audio_files import AudioInfo, audio_info
from bsrnn_core.audio_formats import check_writable
from bsrnn_core.checkpoint import load
from bsrnn_core.errors import BadInput
from bsrnn_core.model import BSRNN
from data_prep.storage import location
from pipelines import display
from pipelines.infer_plan import InferConfig, SongJob, find_songs, out_folder, outputs_of, plan
from pipelines.infer_song import ShowProgress, SongReport, separate_song
from pipelines.remote_checkpoints import local_checkpoint

__all__ = ["InferConfig", "run"]

WORKER_BYTES = 2e9
"""Memory of a worker that separates a song: the paper preset's, on a CPU."""

Outcome = SongReport | Exception


def run(config: InferConfig) -> list[Path]:
    """Separate the songs, say where the stems are, and return the files of those that succeeded.

    Of a song either all files are written or none. A song that cannot be separated keeps no other
    from being so. Raises BadInput when nothing can be done as asked (before anything is written),
    and at the end when a song was left out; RuntimeError when that was no fault of the songs.
    """
    out_folder(config)
    songs = find_songs(config.input)
    model = load(local_checkpoint(config.checkpoint_fp), "cpu")
    jobs, done = plan(config, songs, outputs_of(config, model.stems))
    if done:
        print(f"{len(done)} song(s) are done already")
    outcomes: dict[Path, Outcome] = {}
    for job in jobs:
        try:
            _check(job, config)
        except BadInput as error:
            outcomes[job.song] = error
    able = [job for job in jobs if job.song not in outcomes]
    outcomes.update(_separate(model, able, config))
    return _conclude(jobs, outcomes, config)


def _check(job: SongJob, config: InferConfig) -> None:
    """Raises BadInput for a song that cannot be read, or that the format cannot hold."""
    info = audio_info(job.song, estimate=True)
    for file in job.files.values():
        check_writable(
            file,
            info.sample_rate,
            info.channels,
            subtype=config.written_subtype,
            num_samples=info.num_samples,
        )


def _separate(model: BSRNN, jobs: Sequence[SongJob], config: InferConfig) -> dict[Path, Outcome]:
    if not jobs:
        return {}
    if config.num_workers == 1 or (config.num_workers is None and len(jobs) == 1):
        return _separate_here(model, jobs, config)
    return _separate_on_ray(jobs, config)


def _separate_here(
    model: BSRNN, jobs: Sequence[SongJob], config: InferConfig
) -> dict[Path, Outcome]:
    """One song after the other in this process, on all its cores or its GPU."""
    model = model.to(_device(config.device))
    outcomes: dict[Path, Outcome] = {}
    with display.progress(counted=False) as bars:
        for job in jobs:
            try:
                outcomes[job.song] = separate_song(model, job, config, _bar(bars, job.song.name))
            except (BadInput, RuntimeError) as error:
                if len(jobs) == 1:
                    raise
                outcomes[job.song] = error
    return outcomes


def _bar(bars: Progress, name: str) -> ShowProgress:
    """What moves a new bar for a song."""
    bar, started = bars.add_task(name, total=None, rate=""), time.perf_counter()

    def show(done: int, info: AudioInfo) -> None:
        rate = display.times_real_time(done / info.sample_rate, time.perf_counter() - started)
        bars.update(bar, completed=done, total=info.num_samples, rate=rate)

    return show


def _separate_on_ray(jobs: Sequence[SongJob], config: InferConfig) -> dict[Path, Outcome]:
    """Several songs at once, on all machines of the cluster."""
    from pipelines.launch import start_ray
    from pipelines.ray_songs import map_songs, num_song_workers

    start_ray()
    gpu, num_workers = num_song_workers(config.num_workers, config.device, len(jobs), WORKER_BYTES)
    checkpoint = str(location(config.checkpoint_fp))
    songs = [
        {
            "song": str(job.song.resolve()),
            "files": {output: str(file.resolve()) for output, file in job.files.items()},
        }
        for job in jobs
    ]

    def work(model: BSRNN, row: dict[str, Any]) -> dict[str, Any]:
        files = {output: Path(file) for output, file in row["files"].items()}
        return asdict(separate_song(model, SongJob(song=Path(row["song"]), files=files), config))

    outcomes: dict[Path, Outcome] = {}
    done = map_songs(songs, work, checkpoint, gpu=gpu, num_workers=num_workers)
    with display.progress(counted=True) as bars:
        bar, started, seconds = bars.add_task("songs", total=len(jobs), rate=""), time.time(), 0.0
        for place, outcome in done:
            if not isinstance(outcome, Exception):
                outcome = SongReport(**outcome)
                seconds += outcome.seconds
            outcomes[jobs[place].song] = outcome
            rate = display.times_real_time(seconds, time.time() - started)
            bars.update(bar, advance=1, rate=rate)
    return outcomes


def _conclude(
    jobs: Sequence[SongJob], outcomes: Mapping[Path, Outcome], config: InferConfig
) -> list[Path]:
    """Show what came of each song, and raise what kept any of them from being separated."""
    rows: list[list[display.Cell]] = []
    files: list[Path] = []
    failed: dict[Path, Exception] = {}
    for job in jobs:
        outcome = outcomes[job.song]
        if isinstance(outcome, Exception):
            failed[job.song] = outcome
            continue
        files += job.files.values()
        speed = display.times_real_time(outcome.seconds, outcome.wall_seconds)
        rows.append([job.song.name, _shape(outcome), outcome.wall_seconds, speed])
        if config.ends_at_full_scale and config.clip == "rescale":
            rows[-1].append(f"{20 * math.log10(outcome.gain):.2f} dB")
        elif config.ends_at_full_scale:
            rows[-1].append(outcome.exceeding)
    if rows:
        header = ("song", "audio", "wall seconds", "speed")
        if config.ends_at_full_scale:
            header += ("gain" if config.clip == "rescale" else "clamped samples",)
        outputs = ", ".join(jobs[0].files)
        display.show(f"{outputs} of {len(rows)} song(s)", header, rows)
    for file in files:
        print(file)
    if failed:
        _raise(failed, len(jobs))
    return files


def _raise(failed: Mapping[Path, Exception], num_songs: int) -> NoReturn:
    first = next(iter(failed.values()))
    if num_songs == 1:
        raise first
    for song, error in failed.items():
        print(f"left out: {song}: {error}")
    others = [error for error in failed.values() if not isinstance(error, BadInput)]
    sentence = (
        f"{len(failed)} of {num_songs} songs could not be separated: {(others or [first])[0]}"
    )
    raise RuntimeError(sentence) if others else BadInput(sentence)


def _device(name: str) -> torch.device:
    """Raises BadInput when a GPU is asked for and there is none."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise BadInput("device cuda was asked for, but torch sees no GPU; leave --device at auto")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def _shape(report: SongReport) -> str:
    minutes, seconds = divmod(report.seconds, 60)
    channels = {1: "mono", 2: "stereo"}.get(report.channels, f"{report.channels} channels")
    return f"{minutes:.0f}:{seconds:04.1f} min, {report.sample_rate} Hz, {channels}"


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["infer", *sys.argv[1:]]))
