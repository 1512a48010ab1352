"""How many trials of a sweep run side by side, so that none of them waits for ever."""

import math
from collections.abc import Sequence

import ray

from bsrnn_core.errors import BadInput
from pipelines.growth import wait_for_workers
from pipelines.launch import room, use_gpu
from pipelines.tune_plan import TuneConfig

DRIVER_CPUS = 0.01
"""What the process that leads a trial asks for: Ray Tune refuses 0."""


def fitted_room(config: TuneConfig) -> tuple[int, int | None]:
    """Trials side by side and threads of a worker. Raises BadInput where they would wait for
    ever."""
    cluster = config.trial.cluster
    wait_for_workers(cluster)
    workers = cluster.num_workers
    kind = "GPU" if use_gpu(cluster.device) else "CPU"
    nodes = [node["Resources"].get(kind, 0.0) for node in ray.nodes() if node["Alive"]]
    fitting = trials_that_fit(nodes, workers, kind)
    there = f"the cluster has {sum(nodes):g}"
    if not fitting:
        most = max((n for n in range(1, workers) if trials_that_fit(nodes, n, kind)), default=0)
        remedy = f"--workers_per_trial {most} would fit" if most else "add a machine"
        raise BadInput(
            f"a trial of {workers} workers needs {_needs(1, workers, kind)}, but {there}: {remedy}"
        )
    asked = config.max_concurrent
    if asked and asked > fitting:
        raise BadInput(
            f"{asked} trials of {workers} worker(s) at once need {_needs(asked, workers, kind)}, "
            f"but {there}: --max_concurrent {fitting} would fit"
        )
    slots, threads = room(cluster, asked)
    if asked and asked > slots:
        # More than there are cores: as it was asked for.
        return asked, cluster.threads_per_worker or 1
    return min(slots, fitting), threads


def _needs(trials: int, workers: int, kind: str) -> str:
    if kind == "GPU":
        return f"{trials * workers} GPUs"
    return f"{trials * (workers + DRIVER_CPUS):g} CPUs"


def trials_that_fit(nodes: Sequence[float], workers: int, kind: str = "CPU") -> int:
    """Trials that certainly run at once on nodes with so many CPUs or GPUs.

    A worker takes a whole one on one node; the process that leads a trial takes a little of a CPU
    on any node, and all of them may come to be on each.
    """
    share = DRIVER_CPUS if kind == "CPU" else 0.0
    trials = int(sum(nodes)) // workers
    while trials:
        free = sum(max(0, math.floor(there - trials * share + 1e-9)) for there in nodes)
        if free >= trials * workers:
            break
        trials -= 1
    return trials
