"""How the benchmarks take time: what is compared takes turns in one process."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def seconds(run: Callable[[], object], device: str) -> float:
    """Wall time of one call, with all that a GPU still has to do."""
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def median_seconds(
    runs: Mapping[str, Callable[[], object]], device: str, repeats: int
) -> dict[str, float]:
    """Median seconds of each, by name; they take turns, so that a slow moment hits all alike."""
    for run in runs.values():
        seconds(run, device)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(seconds(run, device))
    return {name: statistics.median(times) for name, times in taken.items()}
