"""How a training and the world around it hear of each other."""

from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.stalls import At
from pipelines.stopping import Stop


@dataclass(kw_only=True)
class Events:
    """What a training tells the world and is told by it."""

    on_step: Callable[[dict[str, float]], None] = field(default=lambda status: None)
    """Called on rank 0 after every step, with where the training stands."""
    on_metrics: Callable[[int, dict[str, float]], None] = field(default=lambda step, metrics: None)
    """Called on rank 0 with (step, metrics) to be logged."""
    on_checkpoint: Callable[[], None] = field(default=lambda: None)
    """Called on rank 0 after a checkpoint is written."""
    on_epoch: Callable[[dict[str, float]], None] = field(default=lambda metrics: None)
    """Called on every rank at the end of every epoch."""
    on_phase: Callable[[At, int], None] = field(default=lambda at, step: None)
    """Called on every rank with what it begins to do, and the step that it is at."""
    wish: Callable[[], Stop] = field(default=lambda: Stop.NO)
    """Asked on every rank between two steps: what this worker wishes all of them to do."""
