"""The live table of a sweep."""

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.config import tiny
from pipelines.tune_plan import TuneConfig, plan
from pipelines.tune_progress import MOST_ROWS, picture, seconds_left
from pipelines.tune_trials import Ledger, Trial

SPACE = plan(TuneConfig(space=("lr=[0.001,0.002,0.004]",), train=tiny()))


def status(step: float, seconds: float) -> dict[str, float]:
    return {"epoch": step // 10, "step": step, "steps_per_epoch": 10.0, "seconds": seconds}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """One that finished, one that runs, one that waits."""
    ledger = Ledger(tmp_path / "trials.json")
    for values in SPACE.points or ():
        ledger.add(values, max_epochs=4)
    first, second, _ = ledger.trials
    first.state, first.validations = "finished", [(2, 3.0), (4, 2.5)]
    second.state, second.validations = "running", [(2, -1.0)]
    return ledger


def drawn(ledger: Ledger, statuses: dict[str, dict[str, float]]) -> list[list[str]]:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(picture(ledger, SPACE, statuses, slots=2, minutes=3))
    return [line.split() for line in console.export_text().splitlines()]


def test_each_trial_has_a_line(ledger: Ledger):
    statuses = {"trial-001": status(40, 80), "trial-002": status(25, 50)}
    *lines, whole = drawn(ledger, statuses)
    assert lines == [
        ["trial", "lr", "state", "epoch", "uSDR", "best", "left"],
        ["trial-001", "0.001", "finished", "4/4", "2.50", "3.00"],
        # 15 steps of 2 s are left.
        ["trial-002", "0.002", "running", "2/4", "-1.00", "-1.00", "0:30"],
        ["trial-003", "0.004", "waiting", "0/4"],
    ]
    # 2 + 4 epochs of 20 s, two at a time.
    assert " ".join(whole) == ("1 of 3 trials in 3 min, best 3.00 dB (trial-001), about 1:00 left")


def test_nothing_is_guessed_before_the_first_step(ledger: Ledger):
    for trial in ledger.trials:
        trial.state, trial.validations = "waiting", []
    assert drawn(ledger, {})[-1] == ["0", "of", "3", "trials", "in", "3", "min"]
    assert seconds_left(ledger.trials, 3, {}, slots=2) is None


def test_trials_that_are_not_yet_thought_of_take_time_too(ledger: Ledger):
    statuses = {"trial-001": status(40, 80)}
    left = seconds_left(ledger.trials, 5, statuses, slots=1)
    # By their validations 2 + 4 epochs, and 2 x 4 of the unknown ones.
    assert left == (2 + 4 + 2 * 4) * 20


def test_a_long_list_shows_what_runs(tmp_path: Path):
    ledger = Ledger(tmp_path / "trials.json")
    for number in range(MOST_ROWS + 20):
        name = f"trial-{number + 1:03d}"
        trial = Trial(name=name, values={"lr": 0.1}, max_epochs=4)
        trial.state = "finished" if number < 40 else "running" if number < 42 else "waiting"
        trial.validations = [(4, math.nan)] if trial.state == "finished" else []
        ledger.trials.append(trial)
    lines = drawn(ledger, {})
    assert len(lines) == MOST_ROWS + 2
    assert lines[1][0] == f"trial-{42 - MOST_ROWS + 1:03d}"
    assert [line[0] for line in lines if "running" in line] == ["trial-041", "trial-042"]
    assert "20 not shown" in " ".join(lines[-1])
