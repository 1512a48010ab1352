"""A running sweep in the terminal: one live table of its trials."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines import display
from pipelines.launch import polling
from pipelines.tune_plan import Plan
from pipelines.tune_space import as_word
from pipelines.tune_trials import Ledger, Trial

Status = Mapping[str, float]
"""What a training posts to a StatusBoard after a step."""

COLOURS = {"running": "cyan", "finished": "green", "stopped early": "yellow", "failed": "red"}
MOST_ROWS = 30
"""Trials in sight; what waits and what ended first are left out before others."""


@contextmanager
def show_trials(ledger: Ledger, space: Plan, board: Any, slots: int) -> Iterator[None]:
    """Show the trials for as long as they run."""
    started = time.monotonic()
    console = Console(stderr=True)
    with Live(console=console, refresh_per_second=2, transient=True) as live, display.log_above():

        def show(statuses: Mapping[str, Status]) -> None:
            minutes = (time.monotonic() - started) / 60
            live.update(picture(ledger, space, statuses, slots, minutes))

        with polling(board, show):
            yield


def picture(
    ledger: Ledger, space: Plan, statuses: Mapping[str, Status], slots: int, minutes: float
) -> Group:
    """The table of the trials and a line on the whole sweep."""
    names = [axis.name for axis in space.axes]
    table = Table(box=None, pad_edge=False)
    for name in ("trial", *names, "state"):
        table.add_column(name)
    for name in ("epoch", "uSDR", "best", "left"):
        table.add_column(name, justify="right")
    trials = list(ledger.trials)
    shown = _in_sight(trials)
    for trial in shown:
        status = statuses.get(trial.name, {})
        running = trial.state == "running"
        last = trial.validations[-1][1] if trial.validations else math.nan
        table.add_row(
            trial.name,
            *(Text(as_word(trial.values[name])) for name in names),
            Text(trial.state, style=COLOURS.get(trial.state, "dim")),
            f"{status['epoch'] if running and status else trial.epoch:.0f}/{trial.max_epochs}",
            _decibels(last),
            _decibels(trial.best_usdr),
            _duration(_seconds_left(trial, status)) if running and status else "",
        )
    return Group(table, Text(_whole(trials, len(shown), space, statuses, slots, minutes)))


def _in_sight(trials: list[Trial]) -> list[Trial]:
    """All of a short list; of a long one those that run, then the newest that ended."""
    running = [trial for trial in trials if trial.state == "running"]
    ended = [trial for trial in trials if trial.ended]
    waiting = [trial for trial in trials if trial.state == "waiting"]
    room = MOST_ROWS - len(running)
    kept = ended[-room:] if room > 0 else []
    chosen = [*running, *kept, *waiting[: max(0, room - len(kept))]]
    return [trial for trial in trials if trial in chosen]


def _whole(
    trials: list[Trial],
    num_shown: int,
    space: Plan,
    statuses: Mapping[str, Status],
    slots: int,
    minutes: float,
) -> str:
    ended = [trial for trial in trials if trial.ended]
    parts = [f"{len(ended)} of {max(space.num_trials, len(trials))} trials in {minutes:.0f} min"]
    best = max(trials, key=lambda trial: _or_lowest(trial.best_usdr), default=None)
    if best is not None and math.isfinite(best.best_usdr):
        parts.append(f"best {best.best_usdr:.2f} dB ({best.name})")
    seconds = seconds_left(trials, space.num_trials, statuses, slots)
    if seconds is not None:
        parts.append(f"about {_duration(seconds)} left")
    if num_shown < len(trials):
        parts.append(f"{len(trials) - num_shown} not shown")
    return ", ".join(parts)


def seconds_left(
    trials: list[Trial], num_trials: int, statuses: Mapping[str, Status], slots: int
) -> float | None:
    """About what the trials take if none is stopped any more and their steps take as long as those
    before; None before the first steps."""
    steps = sum(status["step"] for status in statuses.values())
    if not steps:
        return None
    seconds_per_step = sum(status["seconds"] for status in statuses.values()) / steps
    per_epoch = max(status["steps_per_epoch"] for status in statuses.values()) * seconds_per_step
    epochs = 0.0
    for trial in trials:
        if not trial.ended:
            epochs += trial.max_epochs - statuses.get(trial.name, {}).get("epoch", trial.epoch)
    unknown = max(0, num_trials - len(trials))
    epochs += unknown * max((trial.max_epochs for trial in trials), default=0)
    return epochs * per_epoch / slots


def _seconds_left(trial: Trial, status: Status) -> float:
    steps = trial.max_epochs * status["steps_per_epoch"] - status["step"]
    return max(0.0, steps * status["seconds"] / max(1.0, status["step"]))


def _or_lowest(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _decibels(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
