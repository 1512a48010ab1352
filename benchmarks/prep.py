"""Throughput of preparation through Ray Data against a bare process pool doing the same work.

    python benchmarks/prep.py --songs 12 --seconds 30 --processes 2 --rounds 3

Both sides prepare the same songs of synthesised noise with the same function, one song at a time
per process, one thread each. Start-up is left out on both: each has already prepared every song
once. The rounds take turns, and the best of each side counts, for other programs only ever slow a
round down.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import ray
import soundfile
import torch

from bsrnn_core.config import STEMS
from data_prep.config import PrepConfig, SourceConfig
from data_prep.prepare import prepare, prepare_track
from data_prep.tracks import find_tracks

SAMPLE_RATE = 44100


def write_songs(root: Path, songs: int, seconds: float) -> SourceConfig:
    """Stereo songs of four stems of noise, in the layout of MUSDB18-HQ without mixtures."""
    random = np.random.default_rng(0)
    for song in range(songs):
        folder = root / "train" / f"song {song:02d}"
        folder.mkdir(parents=True)
        for stem in STEMS:
            samples = 0.1 * random.standard_normal((round(seconds * SAMPLE_RATE), 2))
            soundfile.write(folder / f"{stem}.wav", samples, SAMPLE_RATE)
    return SourceConfig(musdbhq_location=str(root), valid_fraction=0)


def timed(action: Callable[[Path], object]) -> float:
    """Wall time of ``action`` on a fresh folder, in seconds."""
    with tempfile.TemporaryDirectory(prefix="prep-") as out:
        started = time.perf_counter()
        action(Path(out))
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--songs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=30, help="length of a song")
    parser.add_argument("--processes", type=int, default=2, help="cores used by either side")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="songs-") as root:
        source = write_songs(Path(root), options.songs, options.seconds)
        config = PrepConfig(source=source)
        tracks = find_tracks(source)
        ray.init(
            # One task more than cores, as `bsrnn prep` runs it.
            num_cpus=options.processes + 1,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=500_000_000,
            _node_ip_address="127.0.0.1",
        )
        spawn = multiprocessing.get_context("spawn")
        with spawn.Pool(options.processes, torch.set_num_threads, (1,)) as pool:

            def through_ray(out: Path) -> None:
                prepare(config, out)

            def through_pool(out: Path) -> None:
                task = partial(prepare_track, config=config, folder=out)
                pool.map(task, tracks, chunksize=1)

            sides = {"ray data": through_ray, "process pool": through_pool}
            for action in sides.values():
                timed(action)
            times: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(options.rounds):
                for name, action in sides.items():
                    times[name].append(timed(action))
        ray.shutdown()

    music = options.songs * options.seconds
    print(f"{options.songs} songs of {options.seconds:g} s, {options.processes} processes")
    print(f"{'':14}{'best s':>8}{'median s':>10}{'x real time':>13}")
    for name, seconds in times.items():
        best, median = min(seconds), statistics.median(seconds)
        print(f"{name:14}{best:8.2f}{median:10.2f}{music / best:13.1f}")
    ratio = min(times["process pool"]) / min(times["ray data"])
    print(f"throughput of ray data / process pool: {ratio:.2f}")


if __name__ == "__main__":
    main()
