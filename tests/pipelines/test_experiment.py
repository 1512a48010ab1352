"""An experiment: its steps in order and side by side, killed and gone on with, compared."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from bsrnn_core.errors import BadInput
from data_prep.config import SourceConfig
from pipelines import display, experiment
from pipelines.config import TrainConfig, tiny
from pipelines.experiment import Setting
from pipelines.experiment_plan import ExperimentConfig, Step, plan


def config(out: Path, train: dict[str, Any] | None = None, **options: Any) -> ExperimentConfig:
    source = SourceConfig(musdbhq_location="songs")
    values = {"name": "exp", "out": str(out), "source": source, **(train or {})}
    return ExperimentConfig(train=dataclasses.replace(tiny(), **values), **options)


class Worker:
    """Takes the place of training and scoring, and notes what it is asked to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: str = "nothing") -> None:
        self.order: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.failing = failing
        self.lock = threading.Lock()
        # Two steps meet here, so that what may run side by side does.
        self.meeting = threading.Barrier(2)
        monkeypatch.setattr(experiment, "_do", self.do)

    def do(self, step: Step, _: Setting) -> None:
        with self.lock:
            self.order.append(step.name)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.meeting.wait(timeout=0.2)
        except threading.BrokenBarrierError:
            self.meeting.reset()
        with self.lock:
            self.at_once -= 1
        if self.failing in step.name:
            raise ValueError("spoiled")


def do_all(steps: list[Step], folder: Path, slots: int) -> list[str]:
    with display.progress(counted=True) as bars:
        setting = Setting(
            folder=folder, shards=folder, run_id="", tracking_uri="", threads=1, bars=bars
        )
        return experiment._do_all(steps, setting, slots)


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_every_step_is_done_once_after_its_trunk_with_no_more_than_the_slots(
    slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    steps = plan(config(tmp_path, num_seeds=1, transfer_part=("bass",)))
    worker = Worker(monkeypatch)
    assert do_all(steps, tmp_path, slots) == []
    assert sorted(worker.order) == sorted(step.name for step in steps)
    for step in steps:
        if step.trunk is not None:
            assert worker.order.index(step.trunk) < worker.order.index(step.name)
    assert worker.most_at_once <= slots
    assert (worker.most_at_once > 1) == (slots > 1)


def test_a_failed_step_takes_only_those_with_it_that_start_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    steps = plan(config(tmp_path, schemas=("v7",), num_seeds=1, transfer_part=("bass", "other")))
    worker = Worker(monkeypatch, failing="v7-base-drums")
    failed = do_all(steps, tmp_path, 2)
    assert set(failed) == {
        "v7-base-drums-seed42",
        "v7-base-to-bass-seed42",
        "v7-base-to-other-seed42",
    }
    assert {*worker.order, *failed} == {step.name for step in steps}
    assert not {"v7-base-to-bass-seed42", "v7-base-to-other-seed42"} & set(worker.order)


def test_a_step_gets_what_only_the_running_experiment_knows(tmp_path: Path):
    steps = {step.name: step for step in plan(config(tmp_path))}
    with display.progress(counted=True) as bars:
        setting = Setting(
            folder=tmp_path / "exp",
            shards=tmp_path / "shards",
            run_id="",
            tracking_uri="",
            threads=3,
            bars=bars,
        )
    transfer = experiment._step_config(steps["v7-mtl-to-bass-seed43"], setting)
    assert transfer.checkpoint_fp == str(tmp_path / "exp" / "v7-mtl-seed43" / "best")
    assert (transfer.shards, transfer.out) == (str(tmp_path / "shards"), str(tmp_path / "exp"))
    assert (transfer.cluster.threads_per_worker, transfer.resume) == (3, False)
    (tmp_path / "exp" / "v7-mtl-seed43").mkdir(parents=True)
    (tmp_path / "exp" / "v7-mtl-seed43" / "run.json").write_text("{}")
    base = experiment._step_config(steps["v7-mtl-seed43"], setting)
    assert (base.checkpoint_fp, base.resume) == (None, True)


def test_songs_to_score_are_asked_for_before_anything_is_trained(
    tmp_path: Path, tiny_config: TrainConfig, tiny_shards: Path
):
    train = dataclasses.replace(tiny_config, shards=str(tiny_shards))
    asked = ExperimentConfig(train=train)
    with pytest.raises(BadInput, match="has no test songs"):
        experiment._shards(asked)
