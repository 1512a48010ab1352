"""Where a training says how far it is; importing no more than Ray, so that its process starts at
once."""

import ray


@ray.remote(num_cpus=0)
class StatusBoard:
    """Holds the newest status of every training that posts to it, for whoever shows it."""

    def __init__(self) -> None:
        self.statuses: dict[str, dict[str, float]] = {}

    def post(self, name: str, status: dict[str, float]) -> None:
        """Replace the status of the training called ``name``."""
        self.statuses[name] = status

    def read(self) -> dict[str, dict[str, float]]:
        """The newest statuses by name; a training has none before its first step."""
        return self.statuses
