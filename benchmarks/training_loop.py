"""Steps per second of the real training job, divided by those of a bare loop on one batch.

    python benchmarks/training_loop.py
    python benchmarks/training_loop.py --preset small --batch_size 1 --steps 20 --rounds 2

Real: Ray Train with one worker that reads, decodes and remixes shards, logs to MLflow and tells
where it stands, as in `bsrnn train`. Bare: the same model, loss, optimiser and averaging in this
process, on a batch that lies in memory. Both have one thread to compute with, take turns (bare,
real, bare, ...) and leave out their start and first steps; each real job is divided by the mean of
the bare loops before and after it. Validation and checkpoints have no place here: their frequency
is an option. Aim: at least 0.95. The songs are made on the spot, in a temporary folder.
"""

import argparse
import dataclasses
import itertools
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from bsrnn_core.losses import separation_loss
from bsrnn_core.precision import autocast
from data_prep.config import SourceConfig
from data_prep.demo_songs import make_corpus
from data_prep.prepare import prepare
from pipelines import tracking
from pipelines.config import PRESETS, ClusterConfig, TrainConfig
from pipelines.launch import build_trainer, start_ray
from pipelines.training import Training, TrainingJob
from pipelines.worker import Launch

AIM = 0.95
CPU = torch.device("cpu")


@ray.remote(num_cpus=0)
class StepLog:
    """Takes the place of the status board, and keeps the time of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def post(self, name: str, status: dict[str, float]) -> bool:
        """Called after every step."""
        self.seconds.append(status["seconds"])
        return False

    def post_epoch(self, name: str, metrics: dict[str, float]) -> None:
        """Called after every epoch."""

    def post_beat(self, name: str, rank: int, beat: Any) -> None:
        """Called now and then."""

    def why_hopeless(self, name: str) -> str | None:
        """Called once."""

    def read(self) -> list[float]:
        """When the steps ended, in seconds since the worker's start."""
        return self.seconds


def training_config(
    preset: str, songs: Path, steps: int, batch_size: int | None = None
) -> TrainConfig:
    """The preset as one epoch of ``steps`` steps on one worker with one thread."""
    config = PRESETS[preset]()
    optim = dataclasses.replace(
        config.optim,
        batch_size=batch_size or config.optim.batch_size,
        max_epochs=1,
        steps_per_epoch=steps,
    )
    return dataclasses.replace(
        config,
        name=preset,
        part=("drums",),
        source=SourceConfig(musdbhq_location=str(songs), valid_fraction=0),
        optim=optim,
        cluster=ClusterConfig(device="cpu", num_workers=1, threads_per_worker=1, max_failures=0),
    )


def bare_step_seconds(job: TrainingJob) -> list[float]:
    """Seconds of each step of a loop that does nothing but train, always on the same batch."""
    torch.set_num_threads(1)
    training = Training(job, device=CPU)
    model, state = training.network.train(), training.state
    optim, stft = job.config.optim, job.config.stft
    mixture, references = training.batches.batch(0, 0)
    ends = [time.perf_counter()]
    for _ in range(training.batches.steps_per_epoch):
        with autocast(optim.precision, CPU):
            estimates = model(mixture)
        loss = separation_loss(mixture, references, estimates, stft).sum()
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.step(optim.clip_grad_norm or math.inf)
        ends.append(time.perf_counter())
    return _differences(ends)


def real_step_seconds(job: TrainingJob, tracking_uri: str) -> list[float]:
    """Seconds of each step of a Ray Train job, but for the first: its start is not known."""
    run_id = tracking.create_run(tracking_uri, "benchmarks", job.config.name, {}, {})
    log: Any = StepLog.remote()
    build_trainer(Launch(job=job, run_id=run_id, tracking_uri=tracking_uri), log).fit()
    return _differences(ray.get(log.read.remote()))


def _differences(ends: Sequence[float]) -> list[float]:
    return [end - start for start, end in itertools.pairwise(ends)]


def rate(step_seconds: list[float], counted: int) -> float:
    """Steps per second of the last ``counted`` steps."""
    assert len(step_seconds) >= counted, (len(step_seconds), counted)
    return counted / math.fsum(step_seconds[-counted:])


def compare(
    config: TrainConfig, folder: Path, counted: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Steps per second: of the bare loops (one more than ``rounds``), and of the real jobs."""
    shards = folder / "shards"
    prepare(config.prep, shards)
    uri = f"sqlite:///{folder / 'mlflow.db'}"

    def job(name: str) -> TrainingJob:
        return TrainingJob(config=config, folder=folder / name, shards=shards, metadata={})

    bare = [rate(bare_step_seconds(job("bare")), counted)]
    real: list[float] = []
    for index in range(rounds):
        real.append(rate(real_step_seconds(job(f"real-{index}"), uri), counted))
        bare.append(rate(bare_step_seconds(job("bare")), counted))
        print(f"round {index + 1}: bare {bare[-2]:.3f} and {bare[-1]:.3f}, real {real[-1]:.3f}")
    return bare, real


def ratios(bare: Sequence[float], real: Sequence[float]) -> list[float]:
    """Each real job's rate divided by the mean of the bare loops' before and after it."""
    around = itertools.pairwise(bare)
    return [2 * r / (before + after) for r, (before, after) in zip(real, around, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--batch_size", type=int, help="examples per step (default: the preset's)")
    parser.add_argument("--steps", type=int, default=60, help="steps that are counted")
    parser.add_argument("--warmup", type=int, default=10, help="steps before those")
    parser.add_argument("--rounds", type=int, default=3, help="real jobs")
    parser.add_argument("--songs", type=int, default=8, help="training songs of 20 s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        songs = folder / "songs"
        make_corpus(songs, num_train=options.songs, num_valid=0, num_test=0)
        start_ray(1)
        steps = options.warmup + options.steps
        config = training_config(options.preset, songs, steps, options.batch_size)
        bare, real = compare(config, folder, options.steps, options.rounds)
        ray.shutdown()
    found = ratios(bare, real)
    print(
        f"{options.preset}, batch {config.optim.batch_size}, {options.steps} steps after "
        f"{options.warmup}, one thread each, {torch.__version__}"
    )
    print(f"bare loop  {statistics.median(bare):.3f} steps/s (median of {len(bare)})")
    print(f"Ray Train  {statistics.median(real):.3f} steps/s (median of {len(real)})")
    print(f"ratio      {statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})")
    print(f"aim        at least {AIM}: {'met' if statistics.median(found) >= AIM else 'not met'}")


if __name__ == "__main__":
    main()
