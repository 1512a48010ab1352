"""A cluster that grows while a training waits for it."""

from typing import Any

import pytest

from bsrnn_core.errors import BadInput
from pipelines import growth, launch
from pipelines.config import ClusterConfig


class Growing:
    """A cluster that gets another GPU at every look, once it is asked for some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, limit: int) -> None:
        self.gpus, self.limit = 0, limit
        self.requests: list[list[dict[str, float]]] = []
        monkeypatch.setattr(growth, "POLL_SECONDS", 0.01)
        monkeypatch.setattr(growth, "request_resources", self.request)
        monkeypatch.setattr("ray.cluster_resources", self.resources)

    def request(self, bundles: list[dict[str, float]]) -> None:
        self.requests.append(bundles)

    def resources(self) -> dict[str, Any]:
        if self.requests and self.requests[-1]:
            self.gpus = min(self.gpus + 1, self.limit)
        return {"CPU": 8.0, "GPU": float(self.gpus)}


def test_gpus_are_asked_for_and_waited_for(monkeypatch: pytest.MonkeyPatch):
    there = Growing(monkeypatch, limit=4)
    launch.check_resources(ClusterConfig(device="cuda", num_workers=3, wait_minutes=1))
    # What was asked for is taken back, so that idle machines go.
    assert there.requests == [[{"GPU": 1}] * 3, []]
    assert there.gpus == 3


def test_the_wait_has_an_end(monkeypatch: pytest.MonkeyPatch):
    there = Growing(monkeypatch, limit=2)
    with pytest.raises(BadInput, match="needs 3 GPUs, but the cluster has 2"):
        launch.check_resources(ClusterConfig(device="cuda", num_workers=3, wait_minutes=0.005))
    assert there.requests[-1] == []


def test_nothing_is_asked_for_where_there_is_enough_or_no_wait(monkeypatch: pytest.MonkeyPatch):
    there = Growing(monkeypatch, limit=4)
    launch.check_resources(ClusterConfig(device="cpu", num_workers=8, wait_minutes=1))
    with pytest.raises(BadInput, match="Ray sees no GPU"):
        launch.check_resources(ClusterConfig(device="cuda", num_workers=1))
    assert there.requests == []


def test_a_negative_wait_is_refused():
    with pytest.raises(BadInput, match="wait_minutes"):
        ClusterConfig(wait_minutes=-1)
