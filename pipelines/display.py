"""Tables and progress for people: in the terminal (rich) and as Markdown."""

import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from data_prep.atomic import write_text
from pipelines.scoring import MEASURES, SYSTEMS, Evaluation, Scores

Cell = str | int | float
"""What a table shows: numbers with a fraction get two decimals."""

PIPE_COLUMNS = 120
"""Width of tables where no terminal says how wide it is: a log or a file."""


DISPLAY = {"usdr": "uSDR", "csdr": "cSDR"}


def console() -> Console:
    """Where tables go: the standard output."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return Console()
    return Console(width=PIPE_COLUMNS)


def text(cell: Cell) -> str:
    """A cell as it is shown."""
    if isinstance(cell, float):
        return "nan" if math.isnan(cell) else f"{cell:.2f}"
    return str(cell)


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """A table for the terminal; columns of numbers are set to the right."""
    built = Table()
    for k, name in enumerate(header):
        numbers = all(row[k] == "" or not isinstance(row[k], str) for row in rows)
        built.add_column(name, justify="right" if numbers else "left", no_wrap=numbers)
    for row in rows:
        # Text, for a song's name may hold what rich takes for markup.
        built.add_row(*(Text(text(cell)) for cell in row))
    return built


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """The same as a Markdown table, ending in a line feed."""
    lines = [header, ["---"] * len(header), *([text(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(_escaped(cell) for cell in line)} |\n" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a table below its title."""
    output = console()
    output.print(title, style="bold", markup=False, highlight=False)
    output.print(table(header, rows))


def write_markdown(
    path: Path, title: str, sections: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Cell]]]]
) -> None:
    """A Markdown file of tables: heading -> (header, rows). Whole or not at all."""
    parts = [f"# {title}\n"]
    parts += [f"\n## {name}\n\n{markdown_table(*content)}" for name, content in sections.items()]
    write_text(path, "".join(parts))


def progress(counted: bool) -> Progress:
    """A progress bar with the time left; ``counted`` shows "3/50", otherwise a percentage.

    Tasks take a field ``rate``: a few words such as "12.3 x real time".
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn() if counted else TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def log_above() -> Iterator[None]:
    """Let lines of the log appear above what rich shows live, which redirects ``sys.stderr``."""
    handlers = [
        (handler, handler.stream)
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__
    ]
    for handler, _ in handlers:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler, stream in handlers:
            handler.setStream(stream)


@contextmanager
def bar_among(bars: Progress, description: str, total: float | None = None) -> Iterator[TaskID]:
    """A bar among ``bars`` that leaves when its work is done; one that is alone stays."""
    task = bars.add_task(description, total=total, rate="")
    try:
        yield task
    finally:
        if len(bars.tasks) > 1:
            bars.remove_task(task)


def times_real_time(song_seconds: float, wall_seconds: float) -> str:
    """How fast music was worked through."""
    return f"{song_seconds / max(wall_seconds, 1e-9):.1f} x real time"


SUMMARY_HEADER = ("stem", "score", "mixture", "model", "oracle", "gain", "songs", "nan")


def summary_rows(evaluation: Evaluation) -> list[list[Cell]]:
    """Rows as named by ``SUMMARY_HEADER``: dB, gain over the mixture; songs and nan are the
    model's."""
    rows: list[list[Cell]] = []
    for stem in evaluation.stems:
        for measure in MEASURES:
            scores = {system: evaluation.aggregate(measure, system, stem) for system in SYSTEMS}
            values = [scores[system].value for system in SYSTEMS]
            gain = scores["model"].value - scores["mixture"].value
            counts = (scores["model"].count, scores["model"].nan)
            rows.append([stem, DISPLAY[measure], *values, gain, *counts])
    if len(evaluation.stems) > 1:
        for measure in MEASURES:
            values = [evaluation.mean(measure, system) for system in SYSTEMS]
            rows.append(["mean", DISPLAY[measure], *values, values[1] - values[0], "", ""])
    return rows


TRACK_HEADER = (
    "song", "stem", *(f"{DISPLAY[m]} {system}" for m in MEASURES for system in SYSTEMS)
)  # fmt: skip


def track_rows(evaluation: Evaluation) -> list[list[Cell]]:
    """A row per song and stem, as named by ``TRACK_HEADER``."""

    def values(scores: Scores, stem: str) -> list[Cell]:
        return [scores[measure][system][stem] for measure in MEASURES for system in SYSTEMS]

    return [
        [track.track, stem, *values(track.scores, stem)]
        for track in evaluation.tracks
        for stem in evaluation.stems
    ]


def evaluation_title(evaluation: Evaluation) -> str:
    """What the numbers are."""
    return (
        f"{len(evaluation.tracks)} song(s) of {evaluation.subset}, dB, protocol "
        f"{evaluation.protocol} (uSDR: mean of songs; cSDR: median of songs' medians over 1 s)"
    )
