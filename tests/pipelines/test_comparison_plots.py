"""Figures of a comparison hold its groups: looked up in the drawn lines and bars."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from pipelines import comparison_plots as plots
from pipelines.comparison import compare_runs
from pipelines.comparison_groups import Comparison
from pipelines.tracking_runs import RecordedRun

STEMS = ("vocals", "drums")
SCHEMAS, WAYS = ("v7", "generic"), ("base", "mtl")


def score(schema: str, way: str, stem: str, seed: int) -> float:
    """A number that only this run has for this stem."""
    numbers = SCHEMAS.index(schema), WAYS.index(way), STEMS.index(stem), seed
    return sum(number * 2.0**-k for k, number in enumerate(numbers)) + 1.0


def compare(
    by: Sequence[str] = ("band_schema", "way"),
    schemas: Sequence[str] = SCHEMAS,
    seeds: Sequence[int] = (0, 1),
    epochs: Sequence[int] = (3, 3),
    metrics: Mapping[str, float] | None = None,
) -> Comparison:
    """Runs of all schemas, ways and seeds; uSDR is nought at first and their score at the end."""
    runs: list[RecordedRun] = []
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for schema, way, seed in itertools.product(schemas, WAYS, seeds):
        stems = STEMS if way == "mtl" else ("drums",)
        name = f"{schema} {way} {seed}"
        values = {
            stem: score(SCHEMAS[schemas.index(schema) % 2], way, stem, seed) for stem in stems
        }
        scores = {f"test/usdr_{stem}": value for stem, value in values.items()}
        floors = {f"test/usdr_{stem}_mixture": -3.0 - STEMS.index(stem) for stem in stems}
        tags = {"band_schema": schema, "way": way, "stems": ",".join(stems)}
        runs.append(
            RecordedRun(
                run_id=name,
                name=name,
                status="FINISHED",
                tags=tags,
                params={"seed": str(seed)},
                metrics=scores | floors | dict(metrics or {}),
            )
        )
        last = epochs[seed]
        curves[name] = {"valid/epoch": [(10 * k, float(k)) for k in range(1, last + 1)]}
        for stem, value in values.items():
            points = [(10 * k, 0.0 if k == 1 else value) for k in range(1, last + 1)]
            curves[name][f"valid/usdr_{stem}"] = points
    return compare_runs(runs, curves, by)


def validation(figures: list[Figure], comparison: Comparison) -> list[Axes]:
    plots.plot_validation(comparison, "a title", "x.png")
    return [axes for axes in figures[-1].axes if axes.get_visible()]


def named(axes: Axes) -> dict[str, Line2D]:
    """The lines of the legend, without their last values."""
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()).split("  ")[0]: line for line in lines}


def is_red(colour: object) -> bool:
    red, green, blue = to_rgb(colour)  # type: ignore[arg-type]
    return red > green and red > blue


def is_blue(colour: object) -> bool:
    red, green, blue = to_rgb(colour)  # type: ignore[arg-type]
    return blue > red and blue > green


# Validation


def test_a_panel_per_way_and_in_it_a_line_per_schema_and_stem(figures: list[Figure]) -> None:
    base, mtl = validation(figures, compare())
    assert [axes.get_title() for axes in (base, mtl)] == ["base", "mtl"]
    assert list(named(base)) == ["v7 drums", "generic drums"]
    assert list(named(mtl)) == ["v7 vocals", "v7 drums", "generic vocals", "generic drums"]
    assert base.get_ylim() == mtl.get_ylim()
    legend = mtl.get_legend()
    assert legend is not None
    assert [text.get_text().split("  ")[0] for text in legend.get_texts()] == list(named(mtl))


def test_lines_are_means_over_seeds_within_a_band_from_lowest_to_highest(
    figures: list[Figure],
) -> None:
    _, mtl = validation(figures, compare())
    line, k = named(mtl)["generic vocals"], 2
    low, high = (score("generic", "mtl", "vocals", seed) for seed in (0, 1))
    mean = (low + high) / 2
    assert line.get_xydata().tolist() == [[1, 0], [2, mean], [3, mean]]  # type: ignore[union-attr]
    assert line.get_label() == f"generic vocals  {mean:.2f}"
    band = mtl.collections[k].get_paths()[0].vertices
    assert {tuple(point) for point in band.tolist() if point[0] == 3} == {(3, low), (3, high)}  # type: ignore[union-attr]


def test_v7_is_red_and_generic_blue_and_other_schemas_are_neither(figures: list[Figure]) -> None:
    _, mtl = validation(figures, compare())
    lines = named(mtl)
    assert is_red(lines["v7 vocals"].get_color())
    assert is_red(lines["v7 drums"].get_color())
    assert is_blue(lines["generic vocals"].get_color())
    assert len({str(line.get_color()) for line in lines.values()}) == 4
    _, mtl = validation(figures, compare(schemas=("v1", "joint57")))
    for schema in ("v1", "joint57"):
        colour = named(mtl)[f"{schema} drums"].get_color()
        assert not is_red(colour)
        assert colour not in {line.get_color() for line in lines.values()}
    assert named(mtl)["v1 drums"].get_color() != named(mtl)["joint57 drums"].get_color()


def test_lines_can_be_told_without_colour(figures: list[Figure]) -> None:
    schemas = ("v7", "generic", "v1", "joint57")
    _, mtl = validation(figures, compare(schemas=schemas))
    lines = named(mtl)
    for schema in schemas:
        assert lines[f"{schema} drums"].get_marker() == lines["v7 drums"].get_marker()
        assert lines[f"{schema} vocals"].get_marker() != lines["v7 drums"].get_marker()
    fillings = {
        (line.get_fillstyle(), line.get_markerfacecolor() == line.get_color())
        for name, line in lines.items()
        if name.endswith("drums")
    }
    assert len(fillings) == 4


def test_where_a_run_has_ended_the_line_is_dotted(figures: list[Figure]) -> None:
    base, _ = validation(figures, compare(epochs=(2, 4)))
    solid, dotted = base.lines[:2]
    assert solid.get_xdata().tolist() == [1, 2]  # type: ignore[union-attr]
    assert dotted.get_xdata().tolist() == [2, 3, 4]  # type: ignore[union-attr]
    assert (solid.get_linestyle(), dotted.get_linestyle()) == ("-", ":")
    assert dotted.get_color() == solid.get_color()
    assert figures[-1].get_supxlabel().count("dotted") == 1
    validation(figures, compare())
    assert "dotted" not in figures[-1].get_supxlabel()


def test_one_run_has_no_band_and_needs_no_caption(figures: list[Figure]) -> None:
    base, _ = validation(figures, compare(schemas=("v7",), seeds=(0,)))
    assert list(base.collections) == []
    assert figures[-1].get_supxlabel() == ""


def test_what_is_compared_decides_on_colours_and_panels(figures: list[Figure]) -> None:
    (panel,) = validation(figures, compare(by=("band_schema",)))
    assert panel.get_title() == ""
    assert is_blue(named(panel)["generic drums"].get_color())
    (panel,) = validation(figures, compare(by=("way",)))
    assert "mtl vocals" in named(panel)
    panels = validation(figures, compare(by=("seed", "way", "band_schema")))
    titles = [axes.get_title() for axes in panels]
    assert titles == ["0, base", "0, mtl", "1, base", "1, mtl"]
    assert is_red(named(panels[0])["v7 drums"].get_color())


def test_without_validations_the_figure_says_so(figures: list[Figure]) -> None:
    comparison = compare(epochs=(0, 0))
    (panel,) = validation(figures, comparison)
    assert panel.texts[0].get_text() == "no validation is recorded by epoch"


# Scores


def bars(axes: Axes) -> list[Rectangle]:
    found = [container for container in axes.containers if isinstance(container, BarContainer)]
    return [patch for container in found for patch in container.patches]


def test_bars_are_the_means_in_order_of_stem_way_and_schema(figures: list[Figure]) -> None:
    plots.plot_scores(compare(), "a title", "x.png")
    (axes,) = figures[0].axes
    order = [("mtl", "vocals"), ("base", "drums"), ("mtl", "drums")]
    means = [
        (score(schema, way, stem, 0) + score(schema, way, stem, 1)) / 2
        for way, stem in order
        for schema in SCHEMAS
    ]
    drawn = bars(axes)
    assert [bar.get_height() for bar in drawn] == means
    places = [bar.get_x() for bar in drawn]
    assert places == sorted(places)
    pair, ways, stems = (places[k + 1] - places[k] for k in (2, 3, 1))
    assert drawn[0].get_width() < pair < ways < stems
    reds = [is_red(bar.get_facecolor()) for bar in drawn]
    blues = [is_blue(bar.get_facecolor()) for bar in drawn]
    assert reds == [not blue for blue in blues] == [True, False] * 3
    base, mtl = drawn[2], drawn[4]
    assert base.get_hatch() != mtl.get_hatch()
    assert base.get_facecolor() != mtl.get_facecolor()
    assert drawn[0].get_hatch() == mtl.get_hatch()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["vocals", "drums"]


def test_whiskers_are_the_spread_and_dots_the_runs(figures: list[Figure]) -> None:
    plots.plot_scores(compare(), "", "x.png")
    (axes,) = figures[0].axes
    low, high = (score("v7", "mtl", "vocals", seed) for seed in (0, 1))
    (whisker,) = axes.containers[1][2]  # type: ignore[misc]
    ends = whisker.get_segments()[0][:, 1]
    half = (high - low) / math.sqrt(2)
    assert ends.tolist() == pytest.approx([(low + high) / 2 - half, (low + high) / 2 + half])
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert dots[0].get_ydata().tolist() == [low, high]  # type: ignore[union-attr]
    first = bars(axes)[0]
    assert all(first.get_x() < x < first.get_x() + first.get_width() for x in dots[0].get_xdata())  # type: ignore[union-attr]
    assert len(dots) == 6


def test_the_floor_of_a_stem_lies_below_its_bars(figures: list[Figure]) -> None:
    plots.plot_scores(compare(seeds=(0,)), "", "x.png")
    (axes,) = figures[0].axes
    floors = [c for c in axes.collections if isinstance(c, LineCollection)]
    vocals, drums = (line.get_segments()[0] for line in floors)
    assert (vocals[0, 1], drums[0, 1]) == (-3, -4)
    edges = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars(axes)]
    assert vocals[0, 0] < edges[0][0] < edges[1][1] < vocals[1, 0]
    assert vocals[1, 0] < drums[0, 0] < edges[2][0] < edges[5][1] < drums[1, 0]


def test_a_score_that_is_nan_is_said_and_has_no_bar(figures: list[Figure]) -> None:
    metrics = {"test/usdr_drums": math.nan}
    plots.plot_scores(compare(metrics=metrics), "", "x.png")
    (axes,) = figures[0].axes
    assert len(bars(axes)) == 2
    assert [text.get_text() for text in axes.texts] == ["nan"] * 4


def test_the_legend_names_schemas_ways_and_signs(figures: list[Figure]) -> None:
    plots.plot_scores(compare(), "", "x.png")
    plots.plot_scores(compare(seeds=(0,), by=("band_schema",), schemas=("v7",)), "", "x.png")
    texts = []
    for figure in figures:
        legend = figure.axes[0].get_legend()
        assert legend is not None
        texts.append([text.get_text() for text in legend.get_texts()])
    signs = ["one run", "± standard deviation", "mixture (floor)"]
    assert texts[0] == ["v7", "generic", "base", "mtl", *signs]
    # Two ways are averaged into one group here, so there are runs to show.
    assert texts[1] == ["v7", *signs]


# The table and the files


def test_a_table_shows_its_cells(figures: list[Figure]) -> None:
    rows = [("v7", "base", "1.00"), ("v7", "mtl", "2.00"), ("generic", "base", "0.50")]
    header = ("band schema", "way", "drums")
    plots.plot_table(header, rows, "title", "x.png", words=2, bold={(1, 2)}, rules=(2,))
    (axes,) = figures[0].axes
    cells = {text.get_text(): text for text in axes.texts}
    assert [text.get_text() for text in axes.texts].count("v7") == 1
    bold = [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"]
    assert bold == [*header, "2.00"]
    assert cells["v7"].get_position()[1] < cells["mtl"].get_position()[1]
    assert cells["mtl"].get_position()[1] == cells["2.00"].get_position()[1]
    assert (cells["mtl"].get_horizontalalignment(), cells["2.00"].get_horizontalalignment()) == (
        "left",
        "right",
    )
    rules = [c.get_segments()[0][0, 1] for c in axes.collections if isinstance(c, LineCollection)]
    between = cells["mtl"].get_position()[1], cells["generic"].get_position()[1]
    assert len(rules) == 4
    assert sum(between[0] < y < between[1] for y in rules) == 1


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_files_are_pictures_without_empty_margins(
    tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    comparison = compare(seeds=seeds)
    files = [
        plots.plot_validation(comparison, "title", tmp_path / "validation.png"),
        plots.plot_scores(comparison, "title", tmp_path / "scores.png"),
        plots.plot_table(("a", "b"), [("x", "1")], "a long title", tmp_path / "table.png"),
    ]
    for file in files:
        ink = imread(file)[..., :3].min(axis=-1) < 0.9
        height, width = ink.shape
        # Nothing is cut off at an edge, and the picture is filled.
        assert not (ink[0].any() or ink[-1].any() or ink[:, 0].any() or ink[:, -1].any())
        assert ink[: height // 3].any() and ink[-height // 3 :].any()
        assert ink[:, : width // 3].any() and ink[:, -width // 3 :].any()
