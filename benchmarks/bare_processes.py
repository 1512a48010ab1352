"""Processes without Ray: what scaling.py compares Ray Train with.

In a file of its own, because a process that starts has to import what it runs.
"""

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from step_cost import MIB, Network
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training_loop import CPU

from data_prep.batches import Batch
from pipelines.training import Training, TrainingJob

ALL_REDUCES = 30
SMALL_BYTES, LARGE_BYTES = 4, 16 * MIB
"""What tells a network's hop, and its bandwidth."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps that are timed: ``windows`` of ``window`` steps, after one that is not."""

    window: int
    windows: int

    @property
    def steps(self) -> int:
        """Of one contender, in one turn."""
        return self.window * (self.windows + 1)

    def of(self, step_ends: list[float]) -> list[float]:
        """Seconds per step in every counted window, from when the steps ended."""
        ends = step_ends[self.window - 1 :: self.window]
        return [(end - start) / self.window for start, end in itertools.pairwise(ends)]


def bare_windows(
    job: TrainingJob, plan: Plan, processes: int, *, ddp: bool, meeting: Path
) -> list[dict[str, list[float]]]:
    """What each of some bare processes at work at the same time reports (``bare_process``).

    They meet in the folder ``meeting``, which is new.
    """
    meeting.mkdir()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        made = [
            pool.submit(bare_process, job, plan, rank, processes, ddp, meeting)
            for rank in range(processes)
        ]
        return [future.result() for future in made]


def bare_process(
    job: TrainingJob, plan: Plan, rank: int, processes: int, ddp: bool, meeting: Path
) -> dict[str, list[float]]:
    """Seconds per step, in windows, of one bare process: on a batch in "memory", over "shards".

    And the "deviation" of single steps over shards from one another, as a part of a step.
    """
    torch.set_num_threads(1)
    if ddp:
        join(meeting, rank, processes)
    training = Training(job, device=CPU, wrap=distributed if ddp else lambda model: model)
    training.network.train()
    held = itertools.repeat(training.batches.batch(0, 0), plan.steps)

    def ends(batches: Iterable[Batch], source: str) -> list[float]:
        found = []
        for step, batch in enumerate(batches):
            if step == plan.window - 1:
                meet(meeting, source, rank, processes)
            training.train_step(batch)
            found.append(time.perf_counter())
        return found

    in_memory = ends(held, "memory")
    over_shards = ends(training.batches.epoch(0), "shards")
    if ddp:
        dist.destroy_process_group()
    steps = np.diff(over_shards[plan.window - 1 :])
    deviation = np.subtract(*np.quantile(steps, (0.84, 0.16))) / 2 / np.median(steps)
    return {
        "memory": plan.of(in_memory),
        "shards": plan.of(over_shards),
        "deviation": [float(deviation)],
    }


def distributed(model: nn.Module) -> nn.Module:
    """As worker.py has Ray wrap it."""
    return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)


def join(meeting: Path, rank: int, processes: int) -> None:
    """Form a group that all-reduces with gloo."""
    address = f"file://{meeting / 'group'}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=processes)


def meet(meeting: Path, name: str, rank: int, processes: int) -> None:
    """Wait until all have come here."""
    (meeting / f"{name}-{rank}").touch()
    while len(list(meeting.glob(f"{name}-*"))) < processes:
        time.sleep(0.001)


def all_reduce_process(rank: int, meeting: Path, messages: Sequence[Sequence[int]]) -> list[float]:
    """Median seconds of each of some lists of all-reduces (sizes in bytes) between two."""
    torch.set_num_threads(1)
    join(meeting, rank, 2)
    medians = []
    for sizes in messages:
        tensors = [torch.zeros(max(1, size // 4)) for size in sizes]
        taken = []
        for _ in range(ALL_REDUCES):
            dist.barrier()
            start = time.perf_counter()
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                assert work is not None
                work.wait()
            taken.append(time.perf_counter() - start)
        medians.append(statistics.median(taken))
    dist.destroy_process_group()
    return medians


def measure_network(buckets: Sequence[int], meeting: Path) -> tuple[Network, float]:
    """The link between two processes, and the seconds that an all-reduce of ``buckets`` takes.

    They meet in the folder ``meeting``, which is new.
    """
    meeting.mkdir()
    messages = [[SMALL_BYTES], [LARGE_BYTES], buckets]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        both = [pool.submit(all_reduce_process, rank, meeting, messages) for rank in range(2)]
        small, large, whole = (
            max(times) for times in zip(*(f.result() for f in both), strict=True)
        )
    network = Network(
        name="gloo",
        bytes_per_second=LARGE_BYTES / (large - small),
        hop_seconds=small / 2,
    )
    return network, whole
