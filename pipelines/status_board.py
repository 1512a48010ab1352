"""Where a training says how far it is, and hears what it is to do; importing no more than Ray, so
that its process starts at once."""

import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def new_board() -> Any:
    """A StatusBoard on this machine: one elsewhere could be lost with a worker's."""
    here = ray.get_runtime_context().get_node_id()
    return StatusBoard.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)
    ).remote()


@ray.remote(num_cpus=0)
class StatusBoard:
    """Holds what trainings say of themselves, by their names: the newest status, every epoch's
    metrics, what each worker is at; and what they are told."""

    def __init__(self) -> None:
        self.statuses: dict[str, dict[str, float]] = {}
        self.epochs: dict[str, list[dict[str, float]]] = {}
        self.beats: dict[str, dict[int, tuple[float, Any]]] = {}
        self.hopeless: dict[str, str] = {}
        self.to_end: set[str] = set()

    def post(self, name: str, status: dict[str, float]) -> bool:
        """Replace the status of a training; returns whether it is to end."""
        self.statuses[name] = status
        return name in self.to_end

    def read(self) -> dict[str, dict[str, float]]:
        """The newest statuses; a training has none before its first step."""
        return self.statuses

    def ask_to_end(self, name: str) -> None:
        """Tell a training to end at its next step."""
        self.to_end.add(name)

    def post_epoch(self, name: str, metrics: dict[str, float]) -> None:
        """Add the metrics of an epoch; a worker that is restarted may post one again."""
        self.epochs.setdefault(name, []).append(metrics)

    def read_epochs(self, name: str, first: int) -> list[dict[str, float]]:
        """The metrics that were posted for a training, but for the ``first`` ones."""
        return self.epochs.get(name, [])[first:]

    def post_beat(self, name: str, rank: int, beat: Any) -> None:
        """Note what a worker is at (stalls.Beat)."""
        self.beats.setdefault(name, {})[rank] = time.monotonic(), beat

    def read_beats(self, name: str) -> dict[int, tuple[float, Any]]:
        """By rank: the seconds since a worker was heard, and what it said."""
        now = time.monotonic()
        return {rank: (now - at, beat) for rank, (at, beat) in self.beats.get(name, {}).items()}

    def give_up(self, name: str, why: str) -> None:
        """Note that it is no use to start a training's workers again."""
        self.hopeless[name] = why

    def why_hopeless(self, name: str) -> str | None:
        """What ``give_up`` was told."""
        return self.hopeless.get(name)
