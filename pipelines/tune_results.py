"""What came of a sweep: a table of its trials, figures, and the best configuration."""

import csv
import dataclasses
import io
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsrnn_core.checkpoint import existing_folder, read_metadata
from pipelines import display, tracking
from pipelines.config import TrainConfig
from pipelines.config_files import RUN_CONFIG, save_yaml
from pipelines.training import COSTS_FILE
from pipelines.tune_plan import Plan, TuneConfig, trial_config
from pipelines.tune_plots import Point, plot_parallel, plot_tradeoffs
from pipelines.tune_space import as_word, as_words
from pipelines.tune_trials import Ledger, Trial

logger = logging.getLogger(__name__)

REPORT = "sweep"
"""The folder of the results, in the sweep's and among the parent run's artifacts."""
BEST_CONFIG = "best.yaml"
NUMBERS = ("epochs", "uSDR", "million trained", "s/step", "min")
EXPLAINED = (
    "uSDR: the highest validation uSDR in dB, mean over the stems. s/step: seconds of a training "
    "step, validation left out. A trial that was stopped early has had fewer epochs than others."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A trial with what it cost; nan where that is not known."""

    trial: Trial
    epochs: float
    usdr: float
    parameters: float
    """Trained ones."""
    seconds_per_step: float
    minutes: float


def rows(ledger: Ledger, folder: Path) -> list[Row]:
    """The trials with what they cost as of their last checkpoints, best first."""
    found = [_row(trial, folder / trial.name) for trial in ledger.trials]
    return sorted(found, key=lambda row: -row.usdr if math.isfinite(row.usdr) else math.inf)


def _row(trial: Trial, folder: Path) -> Row:
    last, costs = existing_folder(folder / "last"), folder / COSTS_FILE
    spent = json.loads(costs.read_text()) if costs.exists() else {}
    return Row(
        trial=trial,
        epochs=float(read_metadata(last)["epoch"]) if last else math.nan,
        usdr=trial.best_usdr,
        parameters=spent.get("system/parameters_trained", math.nan),
        seconds_per_step=spent.get("system/seconds_per_step", math.nan),
        minutes=spent.get("system/minutes", math.nan),
    )


def best(ranked: Sequence[Row]) -> Row | None:
    """The best trial: of those that finished, failing that of all that did not fail; None without
    a score."""
    scored = [row for row in ranked if math.isfinite(row.usdr) and row.trial.state != "failed"]
    finished = [row for row in scored if row.trial.state == "finished"]
    return next(iter(finished or scored), None)


def write(
    config: TuneConfig, space: Plan, folder: Path, ledger: Ledger, run_id: str, uri: str
) -> Path:
    """Print the table, write all into the sweep's folder and its MLflow run; returns the folder.

    Raises RuntimeError when no trial that did not fail has a score.
    """
    ranked = rows(ledger, folder)
    winner = best(ranked)
    if winner is None:
        errors = [trial.error for trial in ledger.trials if trial.error]
        raise RuntimeError(
            f"no trial has a score ({errors[0] if errors else 'they are not trained far enough'}); "
            "the same command with --resume goes on with those that have not ended"
        )
    out = folder / REPORT
    header, cells = table(ranked, space)
    display.show(f"{config.train.name}: trials, best first", header, cells)
    options = best_config(config, winner)
    save_yaml(options, out / BEST_CONFIG)
    title = f"Sweep {config.train.name}: {', '.join(options.part)}"
    display.write_text(out / "sweep.md", _markdown(title, header, cells, winner))
    display.write_text(out / "sweep.csv", csv_text(ranked, space))
    points = [_point(row) for row in ranked]
    files = [out / BEST_CONFIG, out / "sweep.md", out / "sweep.csv"]
    files.append(plot_parallel(points, space.axes, winner.trial.name, title, out / "parallel.png"))
    files.append(plot_tradeoffs(points, colour_by(space), title, out / "tradeoffs.png"))
    print(
        f"best: {winner.trial.name} ({as_words(winner.trial.values)}) with {winner.usdr:.2f} dB; "
        f"train it longer with --config {out / BEST_CONFIG}"
    )
    print(f"{', '.join(file.name for file in files)} written to {out}")
    print(f"MLflow: {tracking.run_url(run_id, uri)}")
    metrics = {"best/usdr_mean": winner.usdr}
    artifacts = [*((file, REPORT) for file in files), (folder / RUN_CONFIG, "")]
    problem = tracking.log_results(run_id, uri, metrics, artifacts)
    if problem:
        logger.warning("%s", problem)
    return out


def best_config(config: TuneConfig, winner: Row) -> TrainConfig:
    """The options of the best trial for a training of its own, whose name is still to be given."""
    train = trial_config(config, winner.trial.values)
    return dataclasses.replace(train, name="", resume=False)


def table(ranked: Sequence[Row], space: Plan) -> tuple[list[str], list[list[display.Cell]]]:
    """Header and a line for each trial."""
    names = [axis.name for axis in space.axes]
    header = ["trial", *names, "outcome", *NUMBERS]
    return header, [_line(row, names) for row in ranked]


def _line(row: Row, names: Sequence[str]) -> list[display.Cell]:
    trial = row.trial
    values: list[display.Cell] = [as_word(trial.values[name]) for name in names]
    outcome = f"{trial.state}: {trial.error}" if trial.error else trial.state
    numbers: list[display.Cell] = [
        "" if math.isnan(row.epochs) else f"{row.epochs:.0f}",
        _shown(row.usdr, ".2f"),
        _shown(row.parameters / 1e6, ".3f"),
        _shown(row.seconds_per_step, ".3f"),
        _shown(row.minutes, ".1f"),
    ]
    return [trial.name, *values, outcome, *numbers]


def _shown(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def _markdown(
    title: str, header: Sequence[str], cells: Sequence[Sequence[display.Cell]], winner: Row
) -> str:
    return (
        f"# {title}\n\nBest: {winner.trial.name} ({as_words(winner.trial.values)}), "
        f"{winner.usdr:.2f} dB.\n\n{display.markdown_table(header, cells)}\n{EXPLAINED}\n"
    )


def csv_text(ranked: Sequence[Row], space: Plan) -> str:
    """The trials for machines: numbers as they are, nothing where one is not known."""
    names = [axis.name for axis in space.axes]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    costs = ("epochs", "usdr", "parameters", "seconds_per_step", "minutes")
    writer.writerow(["trial", *names, "outcome", "error", *costs])
    for row in ranked:
        numbers: list[Any] = [getattr(row, cost) for cost in costs]
        writer.writerow(
            [
                row.trial.name,
                *(row.trial.values[name] for name in names),
                row.trial.state,
                row.trial.error,
                *("" if math.isnan(number) else number for number in numbers),
            ]
        )
    return text.getvalue()


def colour_by(space: Plan) -> str:
    """The axis that the figures tell trials apart by: the band schema, failing that the shortest
    list; nothing where there is none."""
    lists = [axis for axis in space.axes if axis.is_list and len(axis.values) > 1]
    if any(axis.name == "band_schema" for axis in lists):
        return "band_schema"
    return min(lists, key=lambda axis: len(axis.values)).name if lists else ""


def _point(row: Row) -> Point:
    return Point(
        name=row.trial.name,
        values=row.trial.values,
        usdr=row.usdr,
        parameters=row.parameters,
        seconds_per_step=row.seconds_per_step,
        finished=row.trial.state == "finished",
    )
