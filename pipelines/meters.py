"""What a worker measures while it trains: mean losses, rates, and the memory that it takes."""

import math
import re
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class LossMeter:
    """Means since the last look, kept on the device so that a GPU is never waited for."""

    def __init__(
        self, stems: tuple[str, ...], weights: tuple[float, ...], device: torch.device
    ) -> None:
        """``weights`` are those of the stems' losses in their sum."""
        self.stems, self.weights, self.device = stems, weights, device
        self._clear()

    def _clear(self) -> None:
        self.sums = torch.zeros(len(self.stems) + 1, device=self.device)
        self.steps = 0
        self.since = time.monotonic()

    @property
    def steps_per_second(self) -> float:
        """Rate since the last look."""
        return self.steps / max(1e-9, time.monotonic() - self.since)

    def add(self, losses: Tensor, norm: Tensor) -> None:
        """Count one step with the stems' losses [S] and its gradient's norm."""
        self.sums += torch.cat([losses, norm[None]])
        self.steps += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint between two looks keeps of this worker's means."""
        elapsed = time.monotonic() - self.since
        return {"sums": self.sums.cpu(), "steps": self.steps, "elapsed_seconds": elapsed}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` returned."""
        self.sums = state["sums"].to(self.device)
        self.steps = state["steps"]
        self.since = time.monotonic() - state["elapsed_seconds"]

    def take(self, world_size: int) -> dict[str, float]:
        """The means over steps and workers, then start anew; nothing when there was no step."""
        if not self.steps:
            return {}
        rate = self.steps_per_second
        if world_size > 1:
            dist.all_reduce(self.sums)
        *losses, norm = (self.sums / (self.steps * world_size)).tolist()
        self._clear()
        return {
            "train/loss": sum(w * loss for w, loss in zip(self.weights, losses, strict=True)),
            **{f"train/loss_{stem}": loss for stem, loss in zip(self.stems, losses, strict=True)},
            "train/grad_norm": norm,
            "train/steps_per_second": rate,
        }


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure ``peak_memory_gb`` anew: Ray may have used this process for something else.

    On a CPU that works on Linux only, as does ``peak_memory_gb``.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        # proc(5): 5 resets the peak of the resident set.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_gb(device: torch.device) -> float:
    """Most memory held at once, in 1e9 bytes: tensors on a GPU, the whole process on a CPU.

    nan where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 / 1e9 if found else math.nan
