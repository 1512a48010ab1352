"""Runs and checkpoints in object storage, played by moto's S3 server on the loopback interface."""

import json
import re
import shlex
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bsrnn_core import checkpoint
from bsrnn_core.checkpoint import read_metadata
from bsrnn_core.errors import BadInput
from data_prep.storage import RemotePath
from pipelines import base, run_storage
from pipelines.cli import main
from pipelines.config import PRESETS, TrainConfig
from pipelines.config_files import RUN_CONFIG, save_yaml
from pipelines.events import Events
from pipelines.flags import parse
from pipelines.remote_checkpoints import archive_of, local_checkpoint, send_checkpoint
from pipelines.run_files import COSTS_FILE, JOURNAL_FILE, RUN_FILE
from pipelines.run_storage import RunStorage, check_shared
from pipelines.training import Training, TrainingJob
from tests.remote import remote_at

Machine = Callable[[str], None]


class Killed(Exception):
    """Ends a training where it stands."""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, object_store: str) -> Machine:
    """``machine("two")`` makes this process one of another machine, whose cache is empty at
    first."""

    def change(name: str) -> None:
        monkeypatch.setenv("BSRNN_CACHE", str(tmp_path / f"cache of {name}"))

    change("one")
    return change


@pytest.fixture
def home(bucket: str, machine: Machine) -> RemotePath:
    """Where a run is kept."""
    return remote_at(f"{bucket}/all runs/a run")


@pytest.fixture
def remote_shards(bucket: str, machine: Machine, tiny_shards: Path) -> RemotePath:
    remote = remote_at(f"{bucket}/shards")
    for file in tiny_shards.rglob("*.*"):
        (remote / file.relative_to(tiny_shards).as_posix()).send(file)
    return remote


@pytest.fixture
def job(tiny_job: TrainingJob, remote_shards: RemotePath) -> TrainingJob:
    """A training from shards in storage, with a checkpoint after every step."""
    optim = replace(tiny_job.config.optim, checkpoint_every_steps=1)
    return replace(tiny_job, config=replace(tiny_job.config, optim=optim), shards=remote_shards)


def train(job: TrainingJob, storage: RunStorage, kill_at: int | None = None, **events: Any) -> None:
    """What the only worker of a training does, killed after so many steps."""

    def count(status: dict[str, float]) -> None:
        if status["step"] == kill_at:
            raise Killed

    storage.fetch()
    heard = Events(on_step=count, on_checkpoint=storage.send_if_possible)
    job = replace(job, folder=storage.folder)
    Training(job, device=torch.device("cpu"), events=replace(heard, **events)).run()
    storage.send_at_last()


def begun(storage: RunStorage) -> None:
    """What the driver leaves before a training begins."""
    storage.fetch()
    (storage.folder / RUN_FILE).write_text(json.dumps({"run_id": "abc", "tracking_uri": "x"}))
    (storage.folder / RUN_CONFIG).write_text("seed: 3\n")
    storage.send()


def same_checkpoints(one: Path, other: Path) -> bool:
    """Bit for bit, in all that is trained and carried along."""
    for name in ("best", "last"):
        for file in ("model.safetensors", "config.json"):
            if (one / name / file).read_bytes() != (other / name / file).read_bytes():
                return False
    states = [torch.load(run / "last" / "training_state.pt") for run in (one, other)]
    for state in states:
        for seconds in ("elapsed_seconds", "step_seconds"):
            state["progress"].pop(seconds)
        for worker in state["workers"]:
            worker["meter"].pop("elapsed_seconds")
    return str(states[0]) == str(states[1])


# --- a run and its copies -------------------------------------------------------------------


def test_from_an_empty_cache_a_run_goes_on_to_the_same_bits(
    job: TrainingJob, tiny_shards: Path, home: RemotePath, machine: Machine, tmp_path: Path
):
    whole = replace(job, folder=tmp_path / "whole", shards=tiny_shards)
    Training(whole, device=torch.device("cpu")).run()
    begun(RunStorage(home))
    with pytest.raises(Killed):
        train(job, RunStorage(home), kill_at=3)
    machine("two")
    storage = RunStorage(home)
    steps: list[float] = []
    train(job, storage, on_step=lambda status: steps.append(status["step"]))
    # The kill came before the checkpoint of its step.
    assert steps == [3, 4]
    assert same_checkpoints(storage.folder, tmp_path / "whole")
    assert set(home.sizes()) == {RUN_FILE, RUN_CONFIG, COSTS_FILE, "best.tar", "last.tar"}
    machine("three")
    elsewhere = RunStorage(home)
    elsewhere.fetch()
    assert same_checkpoints(elsewhere.folder, storage.folder)
    # The first machine has an older copy.
    machine("one")
    first = RunStorage(home)
    assert read_metadata(first.folder / "last")["step"] == 2
    first.fetch()
    assert same_checkpoints(first.folder, storage.folder)


def test_what_is_alike_is_neither_fetched_nor_sent_again(
    job: TrainingJob, home: RemotePath, machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    storage = RunStorage(home)
    begun(storage)
    train(job, storage)
    moved: list[str] = []
    for method in ("fetch", "send"):
        real = getattr(RemotePath, method)

        def counted(self: RemotePath, file: Path, real: Any = real) -> None:
            moved.append(self.name)
            real(self, file)

        monkeypatch.setattr(RemotePath, method, counted)
    again = RunStorage(home)
    again.fetch()
    again.send()
    assert moved == []
    (again.folder / JOURNAL_FILE).write_text("point\n")
    again.send()
    assert moved == [JOURNAL_FILE]
    machine("two")
    RunStorage(home).fetch()
    assert sorted(moved[1:]) == sorted(
        (RUN_FILE, RUN_CONFIG, COSTS_FILE, JOURNAL_FILE, "best.tar", "last.tar")
    )


def test_what_never_left_a_machine_does_not_count(job: TrainingJob, home: RemotePath):
    """All workers go on from the same checkpoint, also that on the machine of the one that died."""
    storage = RunStorage(home)
    begun(storage)
    with pytest.raises(Killed):
        train(job, storage, kill_at=2)
    with pytest.raises(Killed):
        train(job, storage, kill_at=4, on_checkpoint=lambda: None)
    assert read_metadata(storage.folder / "last")["step"] == 3
    again = RunStorage(home)
    again.fetch()
    assert read_metadata(again.folder / "last")["step"] == 1


def test_a_run_that_was_removed_from_storage_is_gone(job: TrainingJob, home: RemotePath):
    storage = RunStorage(home)
    begun(storage)
    train(job, storage)
    for name in home.sizes():
        (home / name).unlink()
    again = RunStorage(home)
    again.fetch()
    assert list(again.folder.iterdir()) == [again.folder / ".copied.json"]


def test_a_storage_that_is_away_ends_no_training(
    job: TrainingJob,
    home: RemotePath,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    storage = RunStorage(home)
    begun(storage)
    real, away = RemotePath._send, {"last.tar": 3}

    def fail(self: RemotePath, file: Path) -> None:
        if away.get(self.name):
            away[self.name] -= 1
            raise OSError("AWS Error NETWORK_CONNECTION during UploadPart")
        real(self, file)

    monkeypatch.setattr(RemotePath, "_send", fail)
    train(job, storage)
    assert caplog.text.count("the storage cannot be reached") == 1
    machine("two")
    elsewhere = RunStorage(home)
    elsewhere.fetch()
    assert same_checkpoints(elsewhere.folder, storage.folder)


def test_results_that_cannot_be_sent_are_not_called_sent(
    job: TrainingJob, home: RemotePath, monkeypatch: pytest.MonkeyPatch
):
    storage = RunStorage(home)
    begun(storage)
    with pytest.raises(Killed):
        train(job, storage, kill_at=2)
    before = archive_of(home / "last").version()

    def fail(self: RemotePath, file: Path) -> None:
        raise OSError("AWS Error NETWORK_CONNECTION during UploadPart")

    monkeypatch.setattr(RemotePath, "_send", fail)
    monkeypatch.setattr(run_storage, "LAST_ATTEMPTS_S", (0, 0))
    with pytest.raises(BadInput) as error:
        train(job, storage)
    assert re.search(rf"{re.escape(str(home))}/\S+ cannot be used", str(error.value))
    assert f"on {socket.gethostname()} in {storage.folder}" in str(error.value)
    assert read_metadata(storage.folder / "last")["step"] == 4
    # What was there before is whole.
    assert archive_of(home / "last").version() == before
    assert read_metadata(local_checkpoint(str(home / "last")))["step"] == 1


def test_training_from_storage_makes_the_same_losses(
    job: TrainingJob, tiny_shards: Path, tmp_path: Path
):
    losses: dict[str, list[dict[str, float]]] = {}
    for name, shards in {"there": job.shards, "here": tiny_shards}.items():
        losses[name] = []
        heard = Events(on_metrics=lambda _, metrics, name=name: losses[name].append(metrics))
        where = replace(job, folder=tmp_path / name, shards=shards)
        Training(where, device=torch.device("cpu"), events=heard).run()
        for metrics in losses[name]:
            for key in [key for key in metrics if key.startswith(("system/", "train/steps_per"))]:
                del metrics[key]
    assert losses["there"] == losses["here"]
    assert any("train/loss" in metrics for metrics in losses["here"])
    assert same_checkpoints(tmp_path / "there", tmp_path / "here")


def test_a_shard_that_is_no_more_what_it_was_ends_a_training(
    job: TrainingJob, remote_shards: RemotePath
):
    path = remote_shards / "train" / "song1.parquet"
    copy = job.folder / "copy"
    path.fetch(copy)
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    path.send(copy)
    with pytest.raises(BadInput, match=rf"{path} holds other bytes than were prepared"):
        Training(job, device=torch.device("cpu"))


# --- checkpoints that are named -------------------------------------------------------------


@pytest.fixture
def trained(job: TrainingJob, home: RemotePath) -> RemotePath:
    """A finished run."""
    storage = RunStorage(home)
    begun(storage)
    save_yaml(replace(job.config, name="a run", out=str(home.parent)), storage.folder / RUN_CONFIG)
    storage.send()
    train(job, storage)
    return home


def test_a_checkpoint_in_storage_is_a_checkpoint(
    trained: RemotePath, machine: Machine, tmp_path: Path
):
    storage = RunStorage(trained)
    machine("two")
    best = str(trained / "best")
    copied = local_checkpoint(best)
    assert local_checkpoint(best) == copied
    theirs, mine = checkpoint.load(storage.folder / "best"), checkpoint.load(copied)
    for one, other in zip(theirs.parameters(), mine.parameters(), strict=True):
        assert torch.equal(one, other)
    # Another one in its place, made within the same second and as large.
    checkpoint.save(tmp_path / "new", mine, {**read_metadata(copied), "epoch": 7})
    send_checkpoint(tmp_path / "new", trained / "best")
    assert read_metadata(local_checkpoint(best))["epoch"] == 7
    assert read_metadata(copied)["epoch"] != 7
    assert local_checkpoint(tmp_path / "new") == tmp_path / "new"


def test_a_checkpoint_that_was_copied_file_by_file_is_read_too(
    trained: RemotePath, bucket: str, machine: Machine
):
    best, copies = RunStorage(trained).folder / "best", remote_at(f"{bucket}/copies/best")
    for file in best.iterdir():
        (copies / file.name).send(file)
    machine("two")
    read = local_checkpoint(str(copies))
    assert (read / "model.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()


def test_no_checkpoint_and_a_damaged_one_are_named(trained: RemotePath, tmp_path: Path):
    with pytest.raises(BadInput, match=r"none: there is no such checkpoint, nor .*none\.tar"):
        local_checkpoint(str(trained / "none"))
    (tmp_path / "x").write_bytes(b"no tar at all" * 100)
    archive_of(trained / "best").send(tmp_path / "x")
    with pytest.raises(BadInput, match=r"best\.tar is damaged"):
        local_checkpoint(str(trained / "best"))


def test_options_come_from_the_run_in_storage(trained: RemotePath, machine: Machine):
    machine("two")
    words = ["--out", str(trained.parent), "--name", "a run", "--resume"]
    resumed = parse(TrainConfig, words, prog="bsrnn train", presets=PRESETS)
    assert (resumed.model.feature_dim, resumed.part) == (4, ("vocals", "drums"))
    words = ["--checkpoint_fp", str(trained / "best"), "--part", "drums", "--transfer"]
    transfer = parse(TrainConfig, words, prog="bsrnn transfer", presets=PRESETS)
    assert (transfer.model.feature_dim, transfer.name, transfer.out) == (4, "", "runs")


def test_a_name_that_is_used_in_storage_is_refused(
    trained: RemotePath,
    remote_shards: RemotePath,
    machine: Machine,
    capsys: pytest.CaptureFixture[str],
):
    machine("two")
    words = ["train", "--shards", str(remote_shards), "--part", "drums", "--name", "a run"]
    assert main([*words, "--out", str(trained.parent)]) == 2
    said = capsys.readouterr().err
    assert f"{trained} holds a run already: take another --name, or give --resume" in said


# --- folders that not all machines see, and places that must be local ------------------------


def test_a_worker_that_does_not_see_the_drivers_folders_says_so(
    tmp_path: Path, tiny_shards: Path, remote_shards: RemotePath, home: RemotePath
):
    host = socket.gethostname()
    (tmp_path / RUN_FILE).write_text(json.dumps({"run_id": "abc"}))
    check_shared(tmp_path, "abc", tiny_shards)
    check_shared(home, "abc", remote_shards)
    # A folder of the same name, left by another run of that machine's own.
    for folder, run_id in ((tmp_path, "def"), (tmp_path / "none", "abc")):
        with pytest.raises(BadInput, match=rf"{host} does not see {folder}, where the results"):
            check_shared(folder, run_id, tiny_shards)
    with pytest.raises(BadInput, match=rf"{host} does not see {tmp_path}, where the shards are"):
        check_shared(tmp_path, "abc", tmp_path)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "experiment --name x --out s3://b/runs --musdbhq_location m",
            "an experiment keeps its books in --out",
        ),
        (
            "tune --name x --out s3://b/runs --shards s --part drums --space lr=[1,2]",
            "a sweep keeps its books in --out",
        ),
        ("demo --out s3://b/demo", "--out takes a local file or folder, not s3://b/demo"),
        ("compare --out s3://b/c", "--out takes a local file or folder, not s3://b/c"),
        ("infer --checkpoint_fp c --input s3://b/x.wav --out o", "--input takes a local file"),
        ("infer --checkpoint_fp c --input x --out s3://b/o", "--out takes a local file"),
        ("train --part drums --name x --shards ftp://b/x", "ftp://b/x: give a local folder, or s3"),
    ],
)
def test_what_must_be_local_is_refused(
    words: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    # Before anything is begun that takes its time.
    monkeypatch.setattr(base, "start_ray", pytest.fail)
    assert main(shlex.split(words)) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
