"""How a training is told, between two steps, that it has to stop or that its machine will go.

All workers then do the same, at the same step: the most urgent wish of any of them.
"""

from enum import IntEnum

import torch
import torch.distributed as dist


class Stop(IntEnum):
    """What a training is told between two steps; a higher one counts for more."""

    NO = 0
    CHECKPOINT = 1
    """Save now and go on: a machine will be taken away."""
    OUT_OF_TIME = 2
    """Validate, save and end: the time budget is spent."""
    RESTART = 3
    """Save and give up: a worker's process has to end, and Ray starts them all anew."""
    END = 4
    """Save and end: whoever started the training wants it so."""


class Interrupted(Exception):
    """A training gave up between two steps, right after a checkpoint."""

    def __init__(self, stop: Stop, step: int) -> None:
        super().__init__(stop, step)
        self.stop, self.step = stop, step

    def __str__(self) -> str:
        return f"stopped at step {self.step}, after a checkpoint"


def agree(wish: Stop, world_size: int, device: torch.device) -> Stop:
    """The most urgent wish of all workers; each of them has to ask."""
    if world_size == 1:
        return wish
    highest = torch.tensor(int(wish), device=device)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return Stop(int(highest.item()))
