"""Where a training says how far it is; importing no more than Ray, so that its process starts at
once."""

import ray


@ray.remote(num_cpus=0)
class StatusBoard:
    """Holds what trainings say of themselves, by their names: the newest status, and every epoch's
    metrics."""

    def __init__(self) -> None:
        self.statuses: dict[str, dict[str, float]] = {}
        self.epochs: dict[str, list[dict[str, float]]] = {}

    def post(self, name: str, status: dict[str, float]) -> None:
        """Replace the status of a training."""
        self.statuses[name] = status

    def read(self) -> dict[str, dict[str, float]]:
        """The newest statuses; a training has none before its first step."""
        return self.statuses

    def post_epoch(self, name: str, metrics: dict[str, float]) -> None:
        """Add the metrics of an epoch; a worker that is restarted may post one again."""
        self.epochs.setdefault(name, []).append(metrics)

    def read_epochs(self, name: str, first: int) -> list[dict[str, float]]:
        """The metrics that were posted for a training, but for the ``first`` ones."""
        return self.epochs.get(name, [])[first:]
