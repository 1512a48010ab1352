"""The figures of a sweep show its numbers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipelines import tune_plots
from pipelines.tune_plots import Point, pareto_front, plot_parallel, plot_tradeoffs
from pipelines.tune_space import parse_space

AXES = parse_space(["feature_dim=[64,16,32]", "lr=loguniform(1e-4,1e-2)", "band_schema=[v7,v1]"])


def point(number: int, usdr: float, **changed: Any) -> Point:
    values = {"feature_dim": 16, "lr": 1e-3, "band_schema": "v7", **changed.pop("values", {})}
    numbers = {"parameters": 1e6, "seconds_per_step": 0.1, "finished": True, **changed}
    return Point(name=f"trial-{number:03d}", values=values, usdr=usdr, **numbers)


POINTS = [
    point(1, 1.0, parameters=1e5, seconds_per_step=0.1),
    point(2, 3.0, parameters=4e5, seconds_per_step=0.4, values={"band_schema": "v1"}),
    point(3, 2.0, parameters=9e5, seconds_per_step=0.2, values={"feature_dim": 64}),
    point(4, -1.0, finished=False, values={"lr": 1e-2}),
    point(5, math.nan),
]


@pytest.fixture
def figures(figures: list[Figure], monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Those of this module too."""

    def keep(figure: Figure, path: str | Path) -> Path:
        figures.append(figure)
        return Path(path)

    monkeypatch.setattr(tune_plots, "save_figure", keep)
    return figures


def drawn(line: Line2D) -> list[tuple[float, float]]:
    """The points of a line."""
    return list(zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True))


def of_trials(figure: Figure) -> list[Line2D]:
    """The lines that go through all four axes."""
    return [line for line in figure.axes[0].lines if len(drawn(line)) == 4]


def test_a_line_goes_through_every_value_of_a_trial(figures: list[Figure]):
    plot_parallel(POINTS, AXES, "trial-003", "Sweep", Path("parallel.png"))
    panel = figures[0].axes[0]
    assert [label.get_text() for label in panel.get_xticklabels()] == [
        *("feature_dim", "lr", "band_schema", "uSDR"),
    ]
    lines = of_trials(figures[0])
    heights = [tuple(y for _, y in drawn(line)) for line in lines]
    # Worst first: trials 4, 1, 3, 2; numbers rise upwards, whatever their order in the list.
    for height, expected in zip(
        heights,
        [(1 / 6, 1.0, 0.25, 0.0), (1 / 6, 0.5, 0.25, 0.5), (5 / 6, 0.5, 0.25, 0.75),
         (1 / 6, 0.5, 0.75, 1.0)],
        strict=True,
    ):  # fmt: skip
        assert height == pytest.approx(expected, abs=tune_plots.SPREAD / 2)
        assert height[-1] == pytest.approx(expected[-1])
    assert [line.get_linestyle() for line in lines] == ["--", "-", "-", "-"]
    widths = [line.get_linewidth() for line in lines]
    assert widths[2] > max(widths[:2] + widths[3:])
    said = {text.get_text() for text in panel.texts}
    assert {"16", "32", "64", "v7", "v1", "0.0001", "0.001", "0.01"} <= said


def test_lines_that_share_a_value_are_kept_apart(figures: list[Figure]):
    plot_parallel(POINTS, AXES, "trial-003", "Sweep", Path("parallel.png"))
    lines = of_trials(figures[0])
    at_schema = [drawn(line)[2][1] for line in lines]
    assert len(set(at_schema)) == len(lines)


def test_equal_scores_are_drawn(figures: list[Figure]):
    plot_parallel([point(1, 2.0), point(2, 2.0)], AXES, "trial-003", "Sweep", Path("parallel.png"))
    assert [drawn(line)[-1][1] for line in of_trials(figures[0])] == [0.5, 0.5]


def test_scores_stand_against_what_they_cost(figures: list[Figure]):
    plot_tradeoffs(POINTS, "band_schema", "Sweep", Path("tradeoffs.png"))
    of_parameters, of_seconds = figures[0].axes
    assert of_parameters.get_xlabel() == "trained parameters"
    assert of_seconds.get_xlabel() == "seconds per training step"
    marks = [line for line in of_seconds.lines if line.get_linestyle() == "None"]
    assert [drawn(line) for line in marks] == [
        *([(0.1, 1.0)], [(0.4, 3.0)], [(0.2, 2.0)], [(0.1, -1.0)]),
    ]
    assert [line.get_fillstyle() for line in marks] == ["full", "full", "full", "none"]
    assert marks[0].get_color() == marks[2].get_color() != marks[1].get_color()
    (front,) = (line for line in of_parameters.lines if line.get_linestyle() != "None")
    # Trial 3 is larger than trial 2 and worse.
    assert [y for _, y in drawn(front)] == [1.0, 3.0]
    assert [text.get_text() for text in of_parameters.texts] == ["001", "002"]
    assert [text.get_text() for text in of_seconds.texts] == ["001", "003", "002"]
    legend = of_seconds.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        *("band_schema v7", "band_schema v1", "not finished", "Pareto front"),
    ]


def test_without_a_list_there_is_one_colour(figures: list[Figure]):
    plot_tradeoffs(POINTS, "", "Sweep", Path("tradeoffs.png"))
    marks = [line for line in figures[0].axes[0].lines if line.get_linestyle() == "None"]
    assert len({line.get_color() for line in marks}) == 1


def test_files_are_written(tmp_path: Path):
    for file in (
        plot_parallel(POINTS, AXES, "trial-003", "Sweep", tmp_path / "parallel.png"),
        plot_tradeoffs(POINTS, "band_schema", "Sweep", tmp_path / "tradeoffs.png"),
    ):
        assert file.read_bytes().startswith(b"\x89PNG")


PAIRS = st.lists(st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float)))


@given(PAIRS)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]):
    front = [points[k] for k in pareto_front(points)]

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    best = {point for point in points if not any(beats(other, point) for other in points)}
    assert front == sorted(best)
