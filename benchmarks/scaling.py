"""One worker and two: how much of the second is left, and whether the model of a step foretells it.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --preset small --batch_size 1 --crop_seconds 0.5

Ray Train: the job of `bsrnn train`, with one worker and with two, one thread each. Bare: processes
of their own that make the same steps over the same shards, without Ray and MLflow: one; two side by
side that know nothing of one another, which shows what the machine takes from each (caches, memory,
clock); two with DDP. Weak: a worker keeps its batch, so two do twice the work in an equal time.
Strong: the global batch stays, so two take half the time. Contenders take turns; starts and first
steps are left out; every time is a median over windows of steps. The parts that the model of
`step_cost.py` needs (computing, reading, all-reduce) are measured alone, in the same run. Aim: a
weak efficiency of at least 0.9 of that of the bare processes, and two workers at least 0.9 times as
fast as the bare pair. It needs two cores that do nothing else, the more so as Ray's workers are
nice to other processes. A run took 41 minutes on two cores.
"""

import argparse
import dataclasses
import itertools
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch
from bare_processes import Plan, bare_windows, measure_network
from step_cost import (
    MIB,
    Network,
    bucket_bytes,
    exposed_seconds,
    ring_seconds,
    slowest,
    step_seconds,
    workload,
)
from training_loop import training_config

from bsrnn_core.metrics import track_usdr
from data_prep.batches import RemixedBatches
from data_prep.demo_songs import make_corpus
from data_prep.prepare import prepare
from data_prep.shards import ChunkRow, ShardDataset
from pipelines import tracking
from pipelines.config import PRESETS, TrainConfig
from pipelines.launch import build_trainer, start_ray
from pipelines.run_files import JOURNAL_FILE
from pipelines.status_board import new_board
from pipelines.tracking_journal import Journal
from pipelines.training import TrainingJob
from pipelines.worker import Launch

AIM = 0.9
DDP_BUCKET = 25 * MIB
"""Torch's default, which the training keeps."""
SETTLED = 16
"""Steps until a lane's first window of chunks is read."""


def scaled_config(base: TrainConfig, batch_size: int, workers: int, plan: Plan) -> TrainConfig:
    """A training of ``workers`` workers with this global batch, which logs once a window."""
    optim = dataclasses.replace(
        base.optim,
        batch_size=batch_size,
        steps_per_epoch=plan.steps,
        max_epochs=1,
        log_every_steps=plan.window,
    )
    cluster = dataclasses.replace(base.cluster, num_workers=workers)
    return dataclasses.replace(base, optim=optim, cluster=cluster)


def real_windows(job: TrainingJob, uri: str) -> list[float]:
    """Seconds per step in the counted windows of a Ray Train job."""
    run_id = tracking.create_run(uri, "benchmarks", job.folder.name, {}, {})
    board = new_board()
    build_trainer(Launch(job=job, run_id=run_id, tracking_uri=uri), board).fit()
    points = Journal(job.folder / JOURNAL_FILE).read()
    rates = {p.step: p.value for p in points if p.key == "train/steps_per_second"}
    return [1 / rates[step] for step in sorted(rates)][1:]


class CountedDataset(ShardDataset):
    """Counts the bytes that are read of stems."""

    bytes_read = 0

    def read_stem(self, row: ChunkRow, stem: str) -> np.ndarray:
        """As it does elsewhere."""
        array = super().read_stem(row, stem)
        self.bytes_read += array.nbytes
        return array


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one thread reads and remixes by itself, and how long it keeps a core busy with that."""

    seconds_per_example: float
    bytes_per_example: float


def measure_reading(config: TrainConfig, shards: Path, steps: int) -> Reading:
    """Of ``steps`` batches, after those that fill the windows."""
    dataset = CountedDataset.open(shards)
    batches = RemixedBatches(
        dataset,
        config.remix,
        stems=config.part,
        crop_frames=config.stft.seconds_to_frames(config.crop_seconds),
        batch_size=config.optim.batch_size,
        steps_per_epoch=None,
        seed=config.seed,
    )
    for step in range(SETTLED):
        batches.batch(0, step)
    before, start = dataset.bytes_read, time.process_time()
    for step in range(SETTLED, SETTLED + steps):
        batches.batch(0, step)
    taken, examples = time.process_time() - start, steps * config.optim.batch_size
    return Reading(
        seconds_per_example=taken / examples,
        bytes_per_example=(dataset.bytes_read - before) / examples,
    )


def song_overhead(dataset: ShardDataset) -> float:
    """Seconds of a core that validating one second of a song takes besides the network."""
    track = dataset.tracks("train")[0]
    start = time.process_time()
    references = dataset.track_references("train", track.name)
    track_usdr(references, references + 1e-3, "single")
    rate = dataset.stft_config.sample_rate
    return (time.process_time() - start) / (track.num_samples / rate)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the model of a step is made of, beside the computing."""

    buckets: tuple[int, ...]
    network: Network
    all_reduce: float
    """Seconds that it takes alone for all buckets, one after the other."""
    reading: Reading
    song: float
    """Seconds per second of a song that validation takes besides the network."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something whose step is timed."""

    kind: str
    """Ray Train, bare or bare DDP."""
    workers: int
    batch: int
    """Examples of a worker's step."""

    @property
    def name(self) -> str:
        """In the table."""
        return f"{self.kind}, {self.workers} x {self.batch}"


def contenders(batch: int) -> list[Contender]:
    """All, in the order in which they take turns."""
    shapes = {"bare": ((1, batch), (1, 2 * batch), (2, batch)), "bare DDP": ((2, batch),)}
    shapes["Ray Train"] = shapes["bare"]
    return [
        Contender(kind=kind, workers=workers, batch=each)
        for kind, of_kind in shapes.items()
        for workers, each in of_kind
    ]


class Bench:
    """Lets contenders train on the shards in ``folder``."""

    def __init__(self, base: TrainConfig, folder: Path, plan: Plan) -> None:
        self.base, self.folder, self.plan = base, folder, plan
        self.shards = folder / "shards"
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.numbers = itertools.count()

    def config(self, contender: Contender) -> TrainConfig:
        """Bare processes without DDP have a training each; others share one global batch."""
        alone = contender.kind == "bare"
        batch = contender.batch if alone else contender.batch * contender.workers
        return scaled_config(self.base, batch, 1 if alone else contender.workers, self.plan)

    def turn(self, contender: Contender) -> dict[str, float]:
        """Median seconds of a step over "shards"; of bare ones also "memory" and "deviation"."""
        name = f"{next(self.numbers)}"
        job = TrainingJob(
            config=self.config(contender),
            folder=self.folder / name,
            shards=self.shards,
            metadata={},
        )
        if contender.kind == "Ray Train":
            return {"shards": statistics.median(real_windows(job, self.uri))}
        both = bare_windows(
            job,
            self.plan,
            contender.workers,
            ddp=contender.kind == "bare DDP",
            meeting=self.folder / f"{name}.meeting",
        )
        return {
            key: statistics.median(value for each in both for value in each[key])
            for key in ("memory", "shards", "deviation")
        }


def measure_parts(bench: Bench) -> Parts:
    """Each alone."""
    buckets = bucket_bytes(workload(bench.base).gradients, DDP_BUCKET)
    network, all_reduce = measure_network(buckets, bench.folder / "network.meeting")
    return Parts(
        buckets=buckets,
        network=network,
        all_reduce=all_reduce,
        reading=measure_reading(bench.base, bench.shards, bench.plan.steps),
        song=song_overhead(ShardDataset.open(bench.shards)),
    )


Turns = dict[str, list[dict[str, float]]]
"""What each contender has shown in every turn, by its name."""


def of(turns: Turns, name: str, key: str = "shards") -> float:
    """The median over the turns."""
    return statistics.median(turn[key] for turn in turns[name])


def predictions(turns: Turns, batch: int, parts: Parts) -> dict[str, float]:
    """Seconds of a step that the model foretells from the parts that were measured alone.

    One worker leaves a core to the thread that reads. Two leave none: their cores take turns at
    computing, reading and carrying gradients, and each step waits for the slower of the two.
    """
    found = {}
    reading = parts.reading.seconds_per_example
    for each in (batch, 2 * batch):
        compute = of(turns, f"bare, 1 x {each}", "memory")
        seconds = step_seconds(compute, reading * each, 0)
        found[f"bare, 1 x {each}"] = found[f"Ray Train, 1 x {each}"] = seconds
    pair = f"bare, 2 x {batch}"
    compute, read = of(turns, pair, "memory"), reading * batch
    found[pair] = step_seconds(compute, read, 0, shared=True)
    waiting = slowest(2, of(turns, pair, "deviation")) * compute
    exposed = exposed_seconds(parts.buckets, 0, 2, parts.network) + waiting
    together = step_seconds(compute, read, exposed, shared=True)
    found[f"bare DDP, 2 x {batch}"] = found[f"Ray Train, 2 x {batch}"] = together
    return found


def efficiencies(turns: Turns, batch: int) -> dict[str, list[float]]:
    """Of every turn: what is left of a worker's speed when there are two."""

    def ratio(name: str, other: str, factor: float = 1) -> list[float]:
        pairs = zip(turns[name], turns[other], strict=True)
        return [factor * one["shards"] / two["shards"] for one, two in pairs]

    found = {}
    for scaling, alone, factor in (("weak", batch, 1), ("strong", 2 * batch, 0.5)):
        for kind in ("Ray Train", "bare"):
            found[f"{scaling}, {kind}"] = ratio(
                f"{kind}, 1 x {alone}", f"{kind}, 2 x {batch}", factor
            )
        ours, machine = found[f"{scaling}, Ray Train"], found[f"{scaling}, bare"]
        found[f"{scaling}, Ray Train / bare"] = [
            one / two for one, two in zip(ours, machine, strict=True)
        ]
    for workers, batch_of_one in ((1, batch), (1, 2 * batch), (2, batch)):
        shape = f"{workers} x {batch_of_one}"
        found[f"speed of Ray Train / bare, {shape}"] = ratio(
            f"bare, {shape}", f"Ray Train, {shape}"
        )
    found[f"speed of bare DDP / bare, 2 x {batch}"] = ratio(
        f"bare, 2 x {batch}", f"bare DDP, 2 x {batch}"
    )
    return found


def show_steps(turns: Turns, all_of: Sequence[Contender], predicted: dict[str, float]) -> None:
    """One line each: measured, foretold."""
    print(f"\n{'':<22}{'ms':>9}{'steps/s':>9}{'examples/s':>12}{'model, ms':>11}{'error':>8}")
    for contender in all_of:
        taken, model = of(turns, contender.name), predicted[contender.name]
        rate = contender.workers * contender.batch / taken
        print(
            f"{contender.name:<22}{1e3 * taken:>9.1f}{1 / taken:>9.3f}{rate:>12.3f}"
            f"{1e3 * model:>11.1f}{model / taken - 1:>8.1%}"
        )


def show_efficiencies(found: dict[str, list[float]], batch: int) -> None:
    """Medians over the turns, and their range.

    What one worker loses to the bare process must not make two look well: the aim is for both.
    """
    pair = f"speed of Ray Train / bare, 2 x {batch}"
    print()
    for name, ratios in found.items():
        print(
            f"{name:<36}{statistics.median(ratios):>7.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )
    weak = min(statistics.median(found[name]) for name in ("weak, Ray Train / bare", pair))
    met = "met" if weak >= AIM else "not met"
    print(f"aim: weak, and speed with two workers, at least {AIM} of bare: {weak:.3f}, {met}")


def show_parts(base: TrainConfig, parts: Parts) -> None:
    """What was measured alone, and what the model makes of it."""
    work = workload(base)
    batch, network, reading = base.optim.batch_size, parts.network, parts.reading
    buckets = parts.buckets
    foretold = sum(ring_seconds(size, 2, network) for size in buckets)
    print(
        f"gradients: {sum(work.gradients) // 4} parameters, {sum(buckets) / 1e6:.2f} MB in "
        f"buckets of {', '.join(f'{size / 1e6:.2f}' for size in buckets)} MB"
    )
    print(
        f"all-reduce alone: {1e3 * parts.all_reduce:.2f} ms, model {1e3 * foretold:.2f} ms "
        f"({network.bytes_per_second / 1e6:.0f} MB/s, {1e6 * network.hop_seconds:.0f} us a hop)"
    )
    print(
        f"reading alone: {1e3 * reading.seconds_per_example:.2f} ms and "
        f"{reading.bytes_per_example / 1e6:.2f} MB per example, model "
        f"{work.bytes_per_example / 1e6:.2f} MB; {batch * reading.bytes_per_example / 1e6:.1f} MB "
        "per step of a worker"
    )
    print(f"validation besides the network: {1e3 * parts.song:.1f} ms per second of a song")


def measure(bench: Bench, batch: int, rounds: int) -> Turns:
    """Every contender in every round."""
    turns: Turns = {contender.name: [] for contender in contenders(batch)}
    for number in range(rounds):
        for contender in contenders(batch):
            turns[contender.name].append(bench.turn(contender))
        print(f"round {number + 1} of {rounds}", end="")
        for name in (f"bare, 2 x {batch}", f"Ray Train, 2 x {batch}"):
            print(f"; {name}: {1e3 * turns[name][-1]['shards']:.0f} ms", end="")
        print(flush=True)
    return turns


def options_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """From the command line."""
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--batch_size", type=int, default=2, help="examples of a worker's step")
    parser.add_argument("--crop_seconds", type=float, help="their length (default: the preset's)")
    parser.add_argument("--window", type=int, default=6, help="steps that a time is the mean of")
    parser.add_argument("--windows", type=int, default=3, help="of a turn, after one for warmth")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--songs", type=int, default=24, help="training songs of 20 s")
    return parser.parse_args()


def load() -> float:
    """Processes that wanted a core in the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options = options_of(parser)
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    batch, load_before = options.batch_size, load()
    with tempfile.TemporaryDirectory(prefix="scaling-") as temporary:
        folder = Path(temporary)
        make_corpus(folder / "songs", num_train=options.songs, num_valid=0, num_test=0)
        start_ray(2)
        plan = Plan(window=options.window, windows=options.windows)
        base = training_config(options.preset, folder / "songs", plan.steps, batch)
        base = dataclasses.replace(base, crop_seconds=options.crop_seconds or base.crop_seconds)
        prepare(base.prep, folder / "shards")
        bench = Bench(base, folder, plan)
        turns = measure(bench, batch, options.rounds)
        parts = measure_parts(bench)
        ray.shutdown()
    print(
        f"\n{options.preset}, {batch} x {base.crop_seconds:g} s a worker, {options.rounds} rounds "
        f"of {plan.windows} x {plan.window} steps, one thread each, torch {torch.__version__}\n"
        f"load of the machine before: {load_before:.1f} (an idle one has 0.0)\n"
    )
    show_parts(base, parts)
    show_steps(turns, contenders(batch), predictions(turns, batch, parts))
    show_efficiencies(efficiencies(turns, batch), batch)


if __name__ == "__main__":
    main()
