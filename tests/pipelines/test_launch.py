"""How many trainings fit on a machine, and what a training that cannot go on does."""

import dataclasses
import os
from typing import Literal

import pytest

from bsrnn_core import BadInput
from pipelines import launch
from pipelines.config import ClusterConfig, TrainConfig
from pipelines.launch import launch_training, room
from pipelines.training import TrainingJob
from pipelines.worker import Launch


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("num_cores", "num_workers", "max_concurrent", "expected"),
    [
        (2, 1, None, (2, 1)),
        (2, 2, None, (1, 1)),
        (8, 2, None, (4, 1)),
        (8, 2, 2, (2, 2)),
        (1, 3, None, (1, 1)),
    ],
)
def test_room_on_one_machine(
    num_cores: int,
    num_workers: int,
    max_concurrent: int | None,
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(launch, "cores", lambda: num_cores)
    cluster = dataclasses.replace(TrainConfig().cluster, num_workers=num_workers)
    assert room(cluster, max_concurrent) == expected


class Cluster:
    """Stands in for Ray: the resources that each look at it finds, and what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *looks: dict[str, float]) -> None:
        self.looks, self.asked = list(looks), []
        monkeypatch.setattr(launch.ray, "cluster_resources", self._look)
        monkeypatch.setattr(launch.ray, "nodes", lambda: [{}])
        monkeypatch.setattr(launch.ray.autoscaler.sdk, "request_resources", self._ask)
        monkeypatch.setattr(launch.time, "sleep", lambda _: None)

    def _look(self) -> dict[str, float]:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def _ask(self, bundles: list[dict[str, float]]) -> None:
        self.asked.append(bundles)


@pytest.mark.parametrize(("device", "kind"), [("cpu", "CPU"), ("cuda", "GPU")])
def test_a_cluster_that_may_grow_is_asked_to_and_waited_for(
    monkeypatch: pytest.MonkeyPatch, device: Literal["cpu", "cuda"], kind: str
):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    cluster = Cluster(monkeypatch, {"CPU": 1}, {"CPU": 1}, {"CPU": 2, "GPU": 1}, {kind: 3})
    launch.check_resources(ClusterConfig(num_workers=3, device=device))
    # Nothing of it is kept for the time after the training.
    assert cluster.asked == [[{kind: 1}] * 3, []]


def test_a_cluster_that_does_not_grow_in_time_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    Cluster(monkeypatch, {"CPU": 2})
    config = ClusterConfig(num_workers=3, device="cpu", wait_minutes=0.001)
    with pytest.raises(BadInput, match=r"needs 3 CPUs, but the cluster has 2 after 0.001 minutes"):
        launch.check_resources(config)


@pytest.mark.parametrize(("device", "sentence"), [("cpu", "needs 3 CPUs"), ("cuda", "no GPU")])
def test_one_machine_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, device: Literal["cpu", "cuda"], sentence: str
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster = Cluster(monkeypatch, {"CPU": 2})
    with pytest.raises(BadInput, match=sentence):
        launch.check_resources(ClusterConfig(num_workers=3, device=device))
    assert cluster.asked == []


@pytest.mark.usefixtures("ray_cluster")
def test_a_loss_that_is_not_finite_is_not_tried_again(tiny_job: TrainingJob, uri: str, run_id: str):
    optim = dataclasses.replace(
        tiny_job.config.optim, lr=1e30, warmup_steps=0, max_epochs=4, max_skipped_steps=2
    )
    config = dataclasses.replace(tiny_job.config, name="huge", optim=optim)
    job = dataclasses.replace(tiny_job, config=config)
    assert config.cluster.max_failures > 0
    # After failures of another kind Ray raises an exception of its own.
    with pytest.raises(FloatingPointError, match="was not finite in 2 steps in a row"):
        launch_training(Launch(job=job, run_id=run_id, tracking_uri=uri))


def test_the_address_of_a_new_ray_is_told_to_its_processes_only(monkeypatch: pytest.MonkeyPatch):
    names = ("RAY_GCS_SERVER_PORT", "RAY_API_SERVER_ADDRESS")
    monkeypatch.setenv(names[0], "1234")
    monkeypatch.delenv(names[1], raising=False)
    with launch._known_address():
        port = os.environ[names[0]]
        assert int(port) not in (0, 1234)
        assert os.environ[names[1]] == f"{launch.LOOPBACK}:{port}"
    assert (os.environ[names[0]], names[1] in os.environ) == ("1234", False)
