"""Where a training says how far it is; importing no more than Ray, so that its process starts at
once."""

import ray


@ray.remote(num_cpus=0)
class StatusBoard:
    """Holds the newest status of a training, for whoever shows it."""

    def __init__(self) -> None:
        self.status: dict[str, float] = {}

    def post(self, status: dict[str, float]) -> None:
        """Replace the status."""
        self.status = status

    def read(self) -> dict[str, float]:
        """The newest status; empty before the first step."""
        return self.status
