"""The ledger of a sweep outlives everything, and early stopping with it."""

import json
import math
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from ray.tune.schedulers import TrialScheduler

from pipelines.base import record_run
from pipelines.config import VALID_MEAN
from pipelines.tune_trials import BEST, EPOCH, FINISHED, Asha, Ledger, LedgerKeeper, Trial


class RayTrial:
    """A trial as Ray Tune hands it to schedulers and callbacks."""

    def __init__(
        self,
        name: str,
        number: int = 0,
        pickled_error_file: Path | None = None,
        error_file: Path | None = None,
    ) -> None:
        self.name = name
        self.trial_id = f"{number}{name}"
        self.pickled_error_file = pickled_error_file
        self.error_file = error_file

    def __str__(self) -> str:
        return self.name


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "trials.json")


def keeper(ledger: Ledger) -> tuple[LedgerKeeper, list[str]]:
    ended: list[str] = []
    return LedgerKeeper(ledger, lambda trial: ended.append(f"{trial.name} {trial.state}")), ended


def test_a_ledger_is_read_as_it_was_written(ledger: Ledger):
    first = ledger.add({"splits": ((1000.0, 100.0),), "hidden_dim": None}, max_epochs=4)
    first.state, first.validations = "stopped early", [(1, 2.5), (2, math.nan), (4, 1.0)]
    second = ledger.add({"lr": 0.1}, max_epochs=2)
    second.state, second.error = "failed", "FloatingPointError: no"
    record_run(ledger.file.parent / "trial-002", "run", "store")
    ledger.save()
    again = Ledger(ledger.file)
    assert [trial.name for trial in again.trials] == ["trial-001", "trial-002"]
    assert again["trial-002"] == second
    known = again["trial-001"]
    assert known.values == {"splits": [[1000.0, 100.0]], "hidden_dim": None}
    assert (known.state, known.epoch, known.best_usdr) == ("stopped early", 4, 2.5)
    assert math.isnan(known.validations[1][1])


def test_what_ran_when_a_sweep_died_waits_again(ledger: Ledger):
    for state in ("waiting", "running", "finished"):
        ledger.add({"lr": 0.1}, max_epochs=2).state = state
    ledger.save()
    again = Ledger(ledger.file)
    assert [trial.state for trial in again.trials] == ["waiting", "waiting", "finished"]
    assert [trial.ended for trial in again.trials] == [False, False, True]


def test_what_failed_before_it_was_recorded_is_tried_again(ledger: Ledger):
    for name in ("trial-001", "trial-002"):
        failed = ledger.add({"lr": 0.1}, max_epochs=2)
        assert failed.name == name
        failed.state, failed.error = "failed", "the MLflow server does not answer"
    ledger.save()
    record_run(ledger.file.parent / "trial-002", "run", "store")
    first, second = Ledger(ledger.file).trials
    assert (first.state, first.error) == ("waiting", "")
    assert (second.state, second.error) == ("failed", "the MLflow server does not answer")


def test_a_waiting_trial_is_found_by_its_values_once(ledger: Ledger):
    values = {"splits": ((1000.0, 100.0),), "lr": 0.1}
    names = [ledger.add(values, max_epochs=2).name for _ in range(3)]
    ledger[names[0]].state = "finished"
    again = Ledger(ledger.file)
    again[names[0]].state = "finished"
    found = again.find(values, [])
    assert found is not None
    assert found.name == names[1]
    other = again.find(values, [names[1]])
    assert other is not None
    assert other.name == names[2]
    assert again.find(values, names) is None
    assert again.find({**values, "lr": 0.2}, []) is None


def test_the_keeper_writes_down_what_happens(ledger: Ledger, tmp_path: Path):
    for _ in range(2):
        trial = ledger.add({}, max_epochs=2)
        record_run(ledger.file.parent / trial.name, "run", "store")
    tell, ended = keeper(ledger)
    good = RayTrial("trial-001")
    tell.on_trial_start(0, [], good)
    assert Ledger(ledger.file).trials[0].state == "waiting"
    assert json.loads(ledger.file.read_text())[0]["state"] == "running"
    tell.on_trial_result(0, [], good, {EPOCH: 1.0, VALID_MEAN: 2.0})
    tell.on_trial_result(0, [], good, {EPOCH: 2.0, VALID_MEAN: math.nan})
    # A worker that was restarted tells an epoch again.
    tell.on_trial_result(0, [], good, {EPOCH: 1.0, VALID_MEAN: 9.0})
    tell.on_trial_complete(0, [], good)
    assert ended == []
    # Time was up within the next epoch: twice, and the second score is the better one.
    tell.on_trial_result(0, [], good, {EPOCH: 2, VALID_MEAN: 0.5})
    tell.on_trial_result(0, [], good, {EPOCH: 2, VALID_MEAN: 0.1})
    tell.on_trial_result(0, [], good, {FINISHED: 1.0, BEST: 2.0})
    tell.on_trial_complete(0, [], good)
    assert ended == ["trial-001 finished"]
    known = Ledger(ledger.file)["trial-001"]
    assert known.validations == [(1, 2.0), (2, 0.5)]
    assert known.best_usdr == 2.0
    error_file = tmp_path / "error.pkl"
    error_file.write_bytes(cloudpickle.dumps(FloatingPointError("not finite")))
    tell.on_trial_error(0, [], RayTrial("trial-002", pickled_error_file=error_file))
    failed = Ledger(ledger.file)["trial-002"]
    assert (failed.state, failed.error) == ("failed", "FloatingPointError: not finite")
    assert ended[1:] == ["trial-002 failed"]


@pytest.mark.parametrize(
    ("pickled", "printed", "said"),
    [
        (None, None, "it died without a word"),
        (b"no pickle", None, "it died without a word"),
        (b"no pickle", "Traceback\nTuneError: no answer\n", "TuneError: no answer"),
        (None, "", "it died without a word"),
    ],
)
def test_a_trial_that_dies_says_what_it_can(
    ledger: Ledger, tmp_path: Path, pickled: bytes | None, printed: str | None, said: str
):
    ledger.add({}, max_epochs=2)
    tell, _ = keeper(ledger)
    files = tmp_path / "error.pkl", tmp_path / "error.txt"
    if pickled is not None:
        files[0].write_bytes(pickled)
    if printed is not None:
        files[1].write_text(printed)
    tell.on_trial_error(0, [], RayTrial("trial-001", 0, *files))
    assert ledger["trial-001"].error == said


def test_ray_tune_may_copy_what_it_is_given(ledger: Ledger):
    tell, _ = keeper(ledger)
    lock = threading.Lock()
    tell.on_end = lambda trial: lock.release()
    with pytest.raises(TypeError):
        cloudpickle.dumps(tell.on_end)
    cloudpickle.loads(cloudpickle.dumps([tell, asha(ledger)]))


def asha(ledger: Ledger, max_epochs: int = 9, grace_epochs: int = 1) -> Asha:
    return Asha(ledger, max_epochs=max_epochs, grace_epochs=grace_epochs, reduction_factor=3)


CURVES = {
    "trial-001": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
    "trial-002": [-9.0] * 9,
    "trial-003": [2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7, 2.8],
    "trial-004": [3.0, 3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7, 3.8],
    "trial-005": [4.0, 3.1, 3.3, 3.3, 3.4, 3.5, 3.6, 3.7, 1.0],
    "trial-006": [math.nan, 3.1, 3.3, 3.3, 3.4, 3.5, 3.6, 3.7, 3.8],
}


def run_sweep(ledger: Ledger, names: list[str], scheduler: Any, number: int = 0) -> list[str]:
    """Let trials run one after the other as Ray Tune does; returns what became of each epoch."""
    tell, _ = keeper(ledger)
    decisions: list[str] = []
    for name in names:
        trial = RayTrial(name, number)
        scheduler.on_trial_add(None, trial)
        known = ledger[name]
        tell.on_trial_start(0, [], trial)
        for epoch in range(known.epoch + 1, known.max_epochs + 1):
            result = {EPOCH: float(epoch), VALID_MEAN: CURVES[name][epoch - 1]}
            decision = scheduler.on_trial_result(None, trial, result)
            tell.on_trial_result(0, [], trial, result)
            decisions.append(f"{name} {epoch} {decision}")
            if decision == TrialScheduler.STOP:
                break
        else:
            last = {FINISHED: 1.0, BEST: CURVES[name][-1]}
            assert scheduler.on_trial_result(None, trial, last) == TrialScheduler.CONTINUE
            tell.on_trial_result(0, [], trial, last)
    return decisions


def new_ledger(file: Path) -> Ledger:
    ledger = Ledger(file)
    for _ in CURVES:
        ledger.add({}, max_epochs=9)
    return ledger


def test_trials_that_lag_behind_are_stopped(tmp_path: Path):
    ledger = new_ledger(tmp_path / "trials.json")
    decisions = run_sweep(ledger, list(CURVES), asha(ledger))
    stopped = [decision for decision in decisions if decision.endswith(TrialScheduler.STOP)]
    # Rungs are epochs 1, 3 and 9: by hand, of those that were there before, one in three goes on.
    assert stopped == ["trial-002 1 STOP", "trial-003 3 STOP"]
    states = [trial.state for trial in ledger.trials]
    assert states == ["finished", "stopped early", "stopped early", "finished", "finished",
                      "finished"]  # fmt: skip


def test_the_last_epoch_is_never_cut_off(tmp_path: Path):
    ledger = new_ledger(tmp_path / "trials.json")
    decisions = run_sweep(ledger, ["trial-001", "trial-005"], asha(ledger))
    # At the rung of epoch 9 its 1 dB is below the first trial's 9 dB.
    assert decisions[-1] == f"trial-005 9 {TrialScheduler.CONTINUE}"
    assert ledger["trial-005"].state == "finished"


@pytest.mark.parametrize("killed_after", range(1, 27, 3))
def test_early_stopping_goes_on_as_if_nothing_had_happened(tmp_path: Path, killed_after: int):
    whole = new_ledger(tmp_path / "whole.json")
    expected = run_sweep(whole, list(CURVES), asha(whole))

    class Killed(Exception):
        pass

    class Killing(Asha):
        count = 0

        def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
            self.count += EPOCH in result
            if self.count > killed_after:
                raise Killed
            return super().on_trial_result(tune_controller, trial, result)

    ledger = new_ledger(tmp_path / "trials.json")
    killing = Killing(ledger, max_epochs=9, grace_epochs=1, reduction_factor=3)
    with pytest.raises(Killed):
        run_sweep(ledger, list(CURVES), killing)
    again = Ledger(tmp_path / "trials.json")
    left = [trial.name for trial in again.trials if not trial.ended]
    decisions = run_sweep(again, left, asha(again), number=1)
    assert expected[killed_after:] == decisions
    assert [t.state for t in again.trials] == [t.state for t in whole.trials]


def test_a_trial_knows_where_it_stands():
    trial = Trial(name="trial-001", values={}, max_epochs=3)
    assert (trial.epoch, trial.ended) == (0, False)
    assert math.isnan(trial.best_usdr)
