"""Tables: numbers as people read them, and names that look like markup left as they are."""

import io
import logging
import math
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipelines import display


@pytest.mark.parametrize(
    ("cell", "shown"), [(1.234, "1.23"), (-0.5, "-0.50"), (7, "7"), (math.nan, "nan"), ("a", "a")]
)
def test_cells(cell: display.Cell, shown: str) -> None:
    assert display.text(cell) == shown


def test_markdown_tables_keep_their_columns() -> None:
    shown = display.markdown_table(("song", "dB"), [["a | b", 1.0], ["c\nd", math.nan]])
    assert shown == "| song | dB |\n| --- | --- |\n| a \\| b | 1.00 |\n| c d | nan |\n"


def test_terminal_tables_set_numbers_to_the_right_and_take_names_as_they_are() -> None:
    output = io.StringIO()
    built = display.table(("song", "dB"), [["[bold]Loud[/bold]", 1.0], ["b", -10.0], ["c", ""]])
    Console(file=output, width=60).print(built)
    assert "[bold]Loud[/bold]" in output.getvalue()
    assert [column.justify for column in built.columns] == ["left", "right"]


def test_tables_in_a_log_are_not_squeezed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    display.show("a title", ("song", "dB"), [["x" * 90, 1.0]])
    printed = capsys.readouterr().out
    assert printed.startswith("a title\n")
    assert "x" * 90 in printed


def test_markdown_files_have_a_section_per_table(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.md"
    display.write_markdown(path, "Scores", {"A": (("x",), [[1]]), "B": (("y",), [[2.5]])})
    assert path.read_text() == (
        "# Scores\n\n## A\n\n| x |\n| --- |\n| 1 |\n\n## B\n\n| y |\n| --- |\n| 2.50 |\n"
    )
    assert [file.name for file in path.parent.iterdir()] == ["scores.md"]


def test_speed_counts_songs_against_the_clock() -> None:
    assert display.times_real_time(60, 5) == "12.0 x real time"
    assert display.times_real_time(0, 0) == "0.0 x real time"


def test_progress_shows_counts_and_rates() -> None:
    output = io.StringIO()
    bar = display.progress(counted=True)
    bar.live.console = Console(file=output, width=100)
    task = bar.add_task("scoring", total=5, rate="2.0 x real time")
    bar.update(task, advance=2)
    Console(file=output, width=100).print(bar.get_renderable())
    assert "scoring" in output.getvalue()
    assert "2/5 2.0 x real time" in output.getvalue()


def test_lines_of_the_log_go_where_rich_redirects_them(monkeypatch: pytest.MonkeyPatch):
    handler = logging.StreamHandler(sys.__stderr__)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    redirected = io.StringIO()
    monkeypatch.setattr(sys, "stderr", redirected)
    with display.log_above():
        logging.getLogger().warning("above the table")
        assert redirected.getvalue() == "above the table\n"
    assert handler.stream is sys.__stderr__
