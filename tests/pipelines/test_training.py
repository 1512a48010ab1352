"""The loop of one worker: resumed bit for bit, stopped on time, the best kept."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bsrnn_core import checkpoint
from bsrnn_core.config import SeparationConfig
from bsrnn_core.errors import BadInput
from bsrnn_core.metrics import usdr
from bsrnn_core.precision import has_bf16
from bsrnn_core.separation import separate
from data_prep.shards import ShardDataset
from pipelines import training, validation
from pipelines.config import TrainConfig
from pipelines.events import Events
from pipelines.training import Training, TrainingJob
from pipelines.training_state import learning_rate_factor

STEMS = ("vocals", "drums")
CHECKPOINT_FILES = ("model.safetensors", "config.json")


class Killed(Exception):
    """Ends a training where it stands."""


@dataclass
class Log:
    """Hears a training, and kills it when told so: at a step, after an epoch (from one)."""

    at_step: int | None = None
    after_epoch: int | None = None
    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    def events(self) -> Events:
        return Events(on_step=self._step, on_metrics=self._metrics, on_epoch=self._epoch)

    def _step(self, status: dict[str, float]) -> None:
        self.steps.append(status["step"])
        if status["step"] == self.at_step:
            raise Killed

    def _metrics(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics.append((step, metrics))

    def _epoch(self, metrics: dict[str, float]) -> None:
        self.epochs.append(metrics)
        if len(self.epochs) == self.after_epoch:
            raise Killed

    def values(self, name: str) -> dict[int, float]:
        return {step: metrics[name] for step, metrics in self.metrics if name in metrics}


def make(job: TrainingJob, log: Log | None = None, **optim: Any) -> Training:
    """The job with some options of OptimConfig changed."""
    config = replace(job.config, optim=replace(job.config.optim, **optim))
    events = (log or Log()).events()
    return Training(replace(job, config=config), device=torch.device("cpu"), events=events)


def run(job: TrainingJob, log: Log | None = None, **optim: Any) -> Training:
    made = make(job, log, **optim)
    made.run()
    return made


def parts(state: Any) -> list[Any]:
    """The tensors and numbers of nested dicts and lists, clocks left out."""
    if isinstance(state, dict):
        return [x for key in state if not str(key).endswith("_seconds") for x in parts(state[key])]
    return [x for value in state for x in parts(value)] if isinstance(state, list) else [state]


def same(one: list[Any], other: list[Any]) -> bool:
    """Bit for bit."""
    return all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y
        for x, y in zip(one, other, strict=True)
    )


def same_checkpoints(one: Path, other: Path) -> bool:
    """Whether two runs' last and best checkpoints hold the same bits."""
    states = [
        parts(torch.load(folder / "last" / "training_state.pt", weights_only=True))
        for folder in (one, other)
    ]
    files = [f"{name}/{file}" for name in ("last", "best") for file in CHECKPOINT_FILES]
    return same(*states) and all(
        (one / file).read_bytes() == (other / file).read_bytes() for file in files
    )


@pytest.fixture(scope="module")
def whole(
    tiny_config: TrainConfig, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingJob, Log]:
    """A run of two epochs of two steps that nothing disturbed."""
    job = TrainingJob(
        config=tiny_config,
        folder=tmp_path_factory.mktemp("whole"),
        shards=tiny_shards,
        metadata={"git_commit": "abc"},
    )
    log = Log()
    run(job, log, log_every_steps=1)
    return job, log


@pytest.mark.parametrize(
    "death", [{"after_epoch": 1}, {"at_step": 1}, {"at_step": 3}, {"at_step": 4}], ids=str
)
def test_killed_and_resumed_run_gives_the_same_bits(tiny_job, whole, death):
    killed = Log(**death)
    with pytest.raises(Killed):
        run(tiny_job, killed, log_every_steps=1)
    torch.manual_seed(1234)
    resumed = Log()
    run(tiny_job, resumed, log_every_steps=1)
    assert same_checkpoints(tiny_job.folder, whole[0].folder)
    for name in ("train/loss", "train/lr", "train/grad_norm", "valid/usdr_mean"):
        assert killed.values(name) | resumed.values(name) == whole[1].values(name)


def test_other_seed_gives_other_bits(tiny_job, whole):
    run(replace(tiny_job, config=replace(tiny_job.config, seed=4)))
    assert not same_checkpoints(tiny_job.folder, whole[0].folder)


def test_finished_run_has_nothing_left_to_do(whole):
    job, log = whole[0], Log()
    run(job, log)
    assert (log.steps, log.epochs, log.metrics) == ([], [], [])


class Clock:
    """A clock that a training's steps move on by a minute each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, now: float = 1000.0) -> None:
        self.now = now
        monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: self.now))

    def minute(self, _: object) -> None:
        self.now += 60


def test_time_budget_stops_within_an_epoch_and_the_rest_follows_later(tiny_job, whole, monkeypatch):
    clock, steps, reports = Clock(monkeypatch), [], []
    for budget in (2.5, 2.5, 3.0, 9.0):
        log = Log()
        made = make(tiny_job, log, max_minutes=budget)
        made.events.on_step = clock.minute
        made.run()
        steps.append(made.state.progress.step)
        reports.append(len(log.epochs))
        assert checkpoint.read_metadata(tiny_job.folder / "last")["step"] == steps[-1]
        # Time between the invocations does not count.
        clock.now += 100_000
    assert steps == [3, 3, 3, 4]
    assert reports == [2, 1, 1, 1]
    state, expected = (
        torch.load(folder / "last" / "training_state.pt", weights_only=True)
        for folder in (tiny_job.folder, whole[0].folder)
    )
    assert state["progress"]["elapsed_seconds"] == 240
    for name in ("model", "optimizer", "scheduler", "averaged"):
        assert same(parts(state[name]), parts(expected[name])), name


def test_logged_metrics(tiny_job, whole):
    _, log = whole
    assert log.steps == [1, 2, 3, 4]
    assert [(metrics["epoch"], metrics["step"]) for metrics in log.epochs] == [(1, 2), (2, 4)]
    assert all({"step", "valid/usdr_mean"} <= metrics.keys() for metrics in log.epochs)
    last = checkpoint.read_metadata(whole[0].folder / "last")
    assert last["valid/usdr_mean"] == log.values("valid/usdr_mean")[4]
    costs = json.loads((whole[0].folder / "costs.json").read_text())
    assert 0 < costs["system/seconds_per_step"] * 4 < 60 * costs["system/minutes"]
    assert costs["system/parameters_trained"] == log.values("system/parameters_trained")[4]
    losses = log.values("train/loss")
    assert list(losses) == [1, 2, 3, 4]
    by_stem = zip(*(log.values(f"train/loss_{stem}").values() for stem in STEMS), strict=True)
    assert list(losses.values()) == pytest.approx([sum(pair) for pair in by_stem])
    assert list(log.values("valid/usdr_mean")) == [2, 4]

    seldom = Log()
    run(tiny_job, seldom, log_every_steps=50)
    # A mean of what there was since the last time, at the end of an epoch too.
    first, second, third, fourth = losses.values()
    expected = {2: (first + second) / 2, 4: (third + fourth) / 2}
    assert seldom.values("train/loss") == pytest.approx(expected)


def test_learning_rate_is_the_schedules(tiny_job, monkeypatch):
    made = make(tiny_job, lr=0.01, warmup_steps=1, lr_decay=0.5, steps_per_epoch=1, max_epochs=5)
    rates = []
    train_step = made.train_step

    def noting(batch: Any) -> Any:
        rates.append(made.state.optimizer.param_groups[0]["lr"])
        return train_step(batch)

    monkeypatch.setattr(made, "train_step", noting)
    made.run()
    assert rates == pytest.approx([0.005, 0.01, 0.005, 0.005, 0.0025])


def test_checkpoints_hold_the_averaged_weights_and_say_what_they_are(whole):
    folder, log = whole[0].folder, whole[1]
    state = torch.load(folder / "last" / "training_state.pt", weights_only=True)
    last = checkpoint.load(folder / "last").state_dict()
    assert all(torch.equal(last[n], state["averaged"][f"module.{n}"]) for n in last)
    assert any(not torch.equal(last[n], state["model"][n]) for n in last)
    metadata = checkpoint.read_metadata(folder / "best")
    assert metadata["git_commit"] == "abc"
    scores = log.values("valid/usdr_mean")
    assert metadata["valid/usdr_mean"] == max(scores.values()) == scores[metadata["step"]]
    assert checkpoint.load(folder / "best").stems == STEMS


def test_validation_scores_whole_songs(whole):
    """The logged uSDR is that of the best checkpoint on the songs as they are in the shards."""
    (job, log), rate = whole, 8000
    model, dataset = checkpoint.load(job.folder / "best"), ShardDataset.open(job.shards)
    step = checkpoint.read_metadata(job.folder / "best")["step"]
    windows = SeparationConfig(window_seconds=model.config.crop_seconds, overlap=0.25)
    for position, stem in enumerate(STEMS):
        scores = []
        for track in ("song3", "song4"):
            references = dataset.track_references("valid", track)
            estimates = separate(model, references.sum(0), rate, windows)
            scores.append(usdr(references[position], estimates[stem]))
        assert log.values(f"valid/usdr_{stem}")[step] == pytest.approx(sum(scores) / 2, abs=1e-4)


def scripted_scores(monkeypatch: pytest.MonkeyPatch, scores: Sequence[float]) -> None:
    """Let each validation end with the next of ``scores``."""
    # Two songs are scored each time.
    left = (score for score in scores for _ in range(2))
    monkeypatch.setattr(validation, "_score", lambda *_: [next(left)] * len(STEMS))


@pytest.mark.parametrize(
    ("every", "patience", "scores", "best_epoch", "last_epoch"),
    [
        (1, 2, [1, 3, 2, 3], 2, 4),
        (1, 0, [3, 2, 1, 0, 0, 0, 0, 0], 1, 8),
        (1, 3, [1, 0, 0, 2, 0, 0, 0], 4, 7),
        (2, 3, [3, 2, 1], 2, 6),
        (3, 9, [1, 2, 3], 8, 8),
    ],
)
def test_early_stopping_counts_epochs(
    tiny_job, monkeypatch, every, patience, scores, best_epoch, last_epoch
):
    scripted_scores(monkeypatch, scores)
    options = {
        "steps_per_epoch": 1,
        "max_epochs": 8,
        "valid_every_epochs": every,
        "patience": patience,
    }
    progress = run(tiny_job, **options).state.progress
    assert (progress.best_epoch, progress.epoch) == (best_epoch, last_epoch)
    assert progress.best_usdr == max(scores)
    assert progress.stopped_early == (last_epoch < 8)
    assert checkpoint.read_metadata(tiny_job.folder / "best")["epoch"] == best_epoch
    assert checkpoint.read_metadata(tiny_job.folder / "last")["epoch"] == last_epoch
    # It knows that it is over, and does not begin again.
    log = Log()
    run(tiny_job, log, **options)
    assert log.steps == []


def test_without_scores_the_newest_is_the_best(tiny_job, monkeypatch):
    scripted_scores(monkeypatch, [float("nan")] * 3)
    made = run(tiny_job, steps_per_epoch=1, max_epochs=3, patience=1)
    assert made.state.progress.epoch == 3
    metadata = checkpoint.read_metadata(tiny_job.folder / "best")
    assert (metadata["epoch"], metadata["valid/usdr_mean"]) == (3, None)


def test_a_model_without_a_score_does_not_replace_one_with_a_score(tiny_job, monkeypatch):
    scripted_scores(monkeypatch, [1.0, float("nan"), float("nan")])
    made = run(tiny_job, steps_per_epoch=1, max_epochs=5, patience=2)
    assert (made.state.progress.epoch, made.state.progress.best_usdr) == (3, 1.0)
    assert checkpoint.read_metadata(tiny_job.folder / "best")["epoch"] == 1


class Poison:
    """Losses of which some steps, by number from one, are not finite: the values or the slopes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float) -> None:
        self.step, self.steps, self.value = 0, steps, value
        self.real = training.separation_loss
        monkeypatch.setattr(training, "separation_loss", self)

    def __call__(self, *tensors: Any) -> Tensor:
        self.step += 1
        losses = self.real(*tensors)
        return losses + self.value if self.step in self.steps else losses


def weights_of(made: Training) -> list[Any]:
    """All that a step of the optimiser changes but the learning rate."""
    state = made.state
    return parts(state.model.state_dict()) + parts(state.optimizer.state_dict()["state"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_whose_loss_is_not_finite_is_left_out(tiny_job, monkeypatch, value):
    Poison(monkeypatch, {2}, value)
    made = make(tiny_job)
    made.train_step(made.batches.batch(0, 0))
    before = [part.clone() if isinstance(part, Tensor) else part for part in weights_of(made)]
    made.train_step(made.batches.batch(0, 1))
    assert same(weights_of(made), before)
    progress = made.state.progress
    assert (progress.step, progress.skipped, progress.skipped_in_row) == (2, 1, 1)


def test_left_out_steps_are_counted_and_no_part_of_the_means(tiny_job, monkeypatch):
    Poison(monkeypatch, {2, 3}, math.nan)
    log = Log()
    made = run(tiny_job, log, log_every_steps=1)
    assert sorted(log.values("train/loss")) == [1, 4]
    assert log.values("train/skipped_steps") == {2: 1, 3: 2, 4: 2}
    assert all(map(math.isfinite, log.values("train/grad_norm").values()))
    progress = made.state.progress
    assert (progress.step, progress.skipped, progress.skipped_in_row) == (4, 2, 0)
    # The schedule goes by step, left out or not.
    optim = made.config.optim
    assert made.state.learning_rate == optim.lr * learning_rate_factor(3, optim, 2)


def test_too_many_steps_left_out_in_a_row_end_the_training(tiny_job, monkeypatch):
    run(tiny_job, max_epochs=1)
    weights = checkpoint.load(tiny_job.folder / "last").state_dict()
    poison = Poison(monkeypatch, {2, 3, 4, 5, 6}, math.nan)
    with pytest.raises(FloatingPointError, match="in 3 steps in a row, up to step 6"):
        run(tiny_job, max_epochs=4, max_skipped_steps=3)
    assert poison.step == 4
    # The checkpoint of the second epoch's end holds the weights of its one good step.
    kept = checkpoint.load(tiny_job.folder / "last")
    assert all(value.isfinite().all() for value in kept.state_dict().values())
    assert not same(parts(kept.state_dict()), parts(weights))
    # With the cause gone it goes on from there.
    poison.steps = set()
    assert run(tiny_job, max_epochs=4).state.progress.step == 8


@pytest.mark.parametrize("every", [2, 3, 5])
@pytest.mark.parametrize("at_step", [3, 4, 6, 7])
def test_a_kill_costs_no_more_than_the_steps_since_a_checkpoint(tiny_job, tmp_path, every, at_step):
    def trained(folder: Path, log: Log) -> TrainingJob:
        job = replace(tiny_job, folder=folder)
        options = {"steps_per_epoch": 4, "log_every_steps": 3, "checkpoint_every_steps": every}
        run(job, log, **options)
        return job

    expected = Log()
    undisturbed = trained(tmp_path / "whole", expected)
    killed, resumed = Log(at_step=at_step), Log()
    with pytest.raises(Killed):
        trained(tmp_path / "killed", killed)
    torch.manual_seed(1234)
    job = trained(tmp_path / "killed", resumed)
    saved = [step for step in range(1, at_step) if step % every == 0 or step % 4 == 0]
    assert resumed.steps[0] == max(saved, default=0) + 1
    assert same_checkpoints(job.folder, undisturbed.folder)
    for name in ("train/loss", "train/lr", "train/grad_norm", "valid/usdr_mean"):
        assert killed.values(name) | resumed.values(name) == expected.values(name)


def test_bf16_training_runs_near_the_float32_one_or_is_refused(tiny_job, whole):
    log = Log()
    if not has_bf16(torch.device("cpu")):
        with pytest.raises(BadInput, match="this CPU cannot"):
            run(tiny_job, log, precision="bf16")
        return
    run(tiny_job, log, precision="bf16", log_every_steps=1)
    losses, expected = (one.values("train/loss") for one in (log, whole[1]))
    assert losses == pytest.approx(expected, rel=0.02)
    assert losses != expected
