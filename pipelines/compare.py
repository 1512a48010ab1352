"""Compare recorded runs: scores and costs over seeds as tables, scores and validations as figures.

bsrnn compare --filter "tags.stage='transfer'" --by band_schema way
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bsrnn_core.errors import BadInput
from data_prep.storage import local_only
from pipelines import display, tracking
from pipelines.comparison import EPOCH, compare_runs, stems_of, trainings
from pipelines.comparison_groups import Comparison
from pipelines.comparison_plots import plot_scores, plot_table, plot_validation
from pipelines.comparison_tables import NUMBERS_EXPLAINED, csv_text, number_table, score_table
from pipelines.config import VALID_MEAN
from pipelines.display import DISPLAY
from pipelines.scoring import MEASURES
from pipelines.tracking_params import mlflow_key
from pipelines.tracking_runs import RecordedRun
from pipelines.tracking_store import shown

SCORES_EXPLAINED = "Test uSDR in dB, mean ± standard deviation over runs"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig:
    """Options of `bsrnn compare`; the store is the one of MLFLOW_TRACKING_URI, or mlflow.db."""

    experiment: str = "bsrnn"
    """MLflow experiment of the runs."""
    filter: str = ""
    """Which of them, as MLflow has it, such as "tags.stage = 'transfer'" (all when not given)."""
    by: tuple[str, ...] = ("band_schema", "way")
    """Tags or parameters to compare by; runs alike in them are averaged."""
    out: str = "comparison"
    """Folder for the tables and figures."""
    allow_different_data: bool = False
    """Compare runs that were not trained on one dataset all the same."""


def run(config: CompareConfig) -> Path:
    """Print the scores, write tables and figures, and return their folder.

    Raises BadInput when the store cannot be read or its runs cannot be compared.
    """
    out = local_only(config.out, "out")
    uri = tracking.tracking_uri()
    runs = tracking.find_runs(uri, config.experiment, config.filter)
    if not trainings(runs):
        which = f"matches the filter {config.filter}" if config.filter else "is recorded"
        raise BadInput(
            f"no training in experiment {config.experiment} {which}: "
            f"`mlflow ui --backend-store-uri {shlex.quote(shown(uri))}` shows what there is"
        )
    comparison = collect(uri, runs, config.by, config.allow_different_data)
    chosen = f" where {config.filter}" if config.filter else ""
    title = f"{config.experiment}: {_words(config.by)}{chosen}"
    files = write_comparison(comparison, out, title)
    show(comparison)
    print(f"{', '.join(file.name for file in files)} written to {out}")
    return out


def show(comparison: Comparison) -> None:
    """Print the tables, and what is to be known about them."""
    table = score_table(comparison, "usdr")
    display.show(SCORES_EXPLAINED, table.header, table.rows)
    display.show("all numbers", *number_table(comparison))
    for sentence in _remarks(comparison):
        print(sentence)


def collect(
    uri: str, runs: Sequence[RecordedRun], by: Sequence[str], allow_different_data: bool = False
) -> Comparison:
    """Compare runs (oldest first) with the validation curves that the store holds of them.

    Raises BadInput when the store cannot be read or the runs cannot be compared.
    """
    curves = {}
    for one in trainings(runs):
        wanted = [EPOCH, VALID_MEAN, *(f"valid/usdr_{stem}" for stem in stems_of(one))]
        recorded = [name for name in wanted if mlflow_key(name) in one.metrics]
        curves[one.run_id] = tracking.metric_curves(uri, one.run_id, recorded)
    return compare_runs(runs, curves, by, allow_different_data)


def write_comparison(comparison: Comparison, out: Path, title: str) -> list[Path]:
    """Write comparison.md, comparison.csv, validation.png, scores.png and table.png."""
    display.write_text(out / "comparison.md", _markdown(comparison, title))
    display.write_text(out / "comparison.csv", csv_text(comparison))
    usdr = score_table(comparison, "usdr")
    return [
        out / "comparison.md",
        out / "comparison.csv",
        plot_validation(comparison, title, out / "validation.png"),
        plot_scores(comparison, title, out / "scores.png"),
        plot_table(
            [name.replace("_", " ") for name in usdr.header],
            usdr.rows,
            f"{title}\n{SCORES_EXPLAINED}",
            out / "table.png",
            words=len(comparison.by),
            bold=usdr.best,
            rules=usdr.rules,
        ),
    ]


def _markdown(comparison: Comparison, title: str) -> str:
    parts = [f"# {title}\n"]
    for measure in MEASURES:
        scores = score_table(comparison, measure)
        table = display.markdown_table(scores.header, scores.rows)
        parts.append(f"## Test {DISPLAY[measure]} in dB\n\n{table}")
    table = display.markdown_table(*number_table(comparison))
    parts.append(f"## All numbers\n\n{table}\n{NUMBERS_EXPLAINED}\n")
    remarks = _remarks(comparison)
    if remarks:
        parts.append("## To know\n\n" + "".join(f"- {sentence}\n" for sentence in remarks))
    return "\n".join(parts)


def _words(by: Sequence[str]) -> str:
    return " and ".join(name.replace("_", " ") for name in by)


def _remarks(comparison: Comparison) -> list[str]:
    left_out = [f"{name} is left out: {reason}." for name, reason in comparison.left_out]
    return [*left_out, *comparison.notes]


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["compare", *sys.argv[1:]]))
