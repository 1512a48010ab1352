"""How many trainings fit on a machine, and what a training that cannot go on does."""

import dataclasses
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from bsrnn_core import BadInput
from data_prep.storage import Unavailable
from pipelines import launch, worker
from pipelines.config import TrainConfig
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


@pytest.mark.proof
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
    with launch._on_loopback():
        port = os.environ[names[0]]
        assert int(port) not in (0, 1234)
        assert os.environ[names[1]] == f"{launch.LOOPBACK}:{port}"
    assert (os.environ[names[0]], names[1] in os.environ) == ("1234", False)


def test_the_token_is_made_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "TOKEN_FILE", tmp_path / ".ray" / "auth_token")
    launch._make_token()
    token = launch.TOKEN_FILE.read_text()
    assert len(token) == 64 and int(token, 16)
    assert stat.S_IMODE(launch.TOKEN_FILE.stat().st_mode) == 0o600
    launch.TOKEN_FILE.chmod(0o644)
    launch._make_token()
    assert launch.TOKEN_FILE.read_text() == token
    assert stat.S_IMODE(launch.TOKEN_FILE.stat().st_mode) == 0o600


class Board:
    """Stands in for the StatusBoard of a training."""

    def __init__(self) -> None:
        self.why: str | None = None
        self.why_hopeless = SimpleNamespace(remote=lambda name: self.why)
        self.give_up = SimpleNamespace(remote=lambda name, why: setattr(self, "why", why))


@pytest.mark.parametrize(
    ("raised", "hopeless", "second"),
    [
        (BadInput("a.parquet is broken"), "a.parquet is broken", BadInput),
        (Unavailable("s3://b/a cannot be used"), None, Unavailable),
    ],
)
def test_data_that_is_broken_is_not_tried_again_and_a_storage_that_is_away_is(
    tiny_job: TrainingJob, monkeypatch: pytest.MonkeyPatch, raised, hopeless, second
):
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(worker.ray, "get", lambda answer: answer)
    monkeypatch.setattr(worker, "_train", fail)
    board = Board()
    settings = {
        "launch": Launch(job=tiny_job, run_id="a", tracking_uri="b"), "board": board, "node": "c"
    }  # fmt: skip
    # Ray starts all workers again after an exception: others may be in the middle of a step.
    with pytest.raises(type(raised)):
        worker.train_worker(settings)
    assert board.why == hopeless
    if hopeless:
        assert str(worker.train_worker(settings)) == hopeless
    else:
        with pytest.raises(second):
            worker.train_worker(settings)
