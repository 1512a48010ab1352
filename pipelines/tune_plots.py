"""Figures of a sweep: every trial as a line through its values, and what a dB costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pipelines.plots import INK, LINE_COLOURS, PALE, save_figure
from pipelines.tune_space import Axis, as_word

MARKERS = "osD^vP"
SPREAD = 0.07
"""How far lines that meet in a value are kept apart, as a part of the axis."""
MOST_TICKS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A trial as the figures see it; nan where a number is not known."""

    name: str
    values: Mapping[str, Any]
    usdr: float
    parameters: float
    seconds_per_step: float
    finished: bool
    """It was neither stopped early nor interrupted, and did not fail."""


def plot_parallel(
    points: Sequence[Point], axes: Sequence[Axis], best: str, title: str, path: Path
) -> Path:
    """An upright axis for each option and one for uSDR; a line for each trial, bright when good.

    The line of the trial called ``best`` is the thickest; those of trials that did not finish are
    dashed.
    """
    scored = sorted((p for p in points if math.isfinite(p.usdr)), key=lambda p: p.usdr)
    figure = Figure(figsize=(2.1 * (len(axes) + 1) + 1.5, 5), layout="constrained")
    panel = figure.add_subplot()
    scale = _usdr_scale([point.usdr for point in scored])
    colours = ScalarMappable(scale, matplotlib.colormaps["viridis"])
    columns = np.arange(len(axes) + 1)
    for k, point in enumerate(scored):
        # In the order of their scores, so that lines do not cross more than they must.
        offset = SPREAD * ((k + 0.5) / len(scored) - 0.5)
        heights = [_height(axis, point.values[axis.name], offset) for axis in axes]
        panel.plot(
            columns, [*heights, float(scale(point.usdr))], color=colours.cmap(scale(point.usdr)),
            linewidth=3.5 if point.name == best else 1.6,
            linestyle="-" if point.finished else (0, (4, 2)), zorder=3 + k,
        )  # fmt: skip
    for column, axis in enumerate(axes):
        panel.axvline(column, color=INK, linewidth=0.8)
        for text, height in _ticks(axis):
            _label(panel, column, height, text)
    panel.axvline(len(axes), color=INK, linewidth=0.8)
    panel.set_xticks(columns, [*(axis.name for axis in axes), "uSDR"])
    panel.set_xlim(-0.35, len(axes) + 0.1)
    panel.set_ylim(-0.08, 1.08)
    panel.yaxis.set_major_locator(NullLocator())
    panel.spines[:].set_visible(False)
    panel.tick_params(axis="x", length=0)
    figure.colorbar(colours, ax=panel, label="validation uSDR in dB", pad=0.01)
    panel.set_title(
        f"{title}\nthick: the best trial; dashed: not finished", loc="left", fontsize=11
    )
    return save_figure(figure, path)


def _usdr_scale(scores: Sequence[float]) -> Normalize:
    low, high = min(scores), max(scores)
    # All alike: in the middle of the axis.
    return Normalize(low, high) if low < high else Normalize(low - 1, high + 1)


def _height(axis: Axis, value: Any, offset: float) -> float:
    """Where on an axis from 0 to 1 a value lies."""
    if axis.is_list:
        places = _ordered(axis)
        place = places.index(value)
        return (place + 0.5) / len(places) + offset / len(places)
    low, high = axis.ends
    if axis.distribution.startswith("log"):
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _ordered(axis: Axis) -> list[Any]:
    """The values of a list, numbers rising."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in axis.values)
    return sorted(axis.values) if numbers else list(axis.values)


def _ticks(axis: Axis) -> list[tuple[str, float]]:
    if axis.is_list:
        return [(as_word(value), _height(axis, value, 0)) for value in _ordered(axis)]
    low, high = axis.ends
    if axis.distribution.startswith("log"):
        values = LogLocator(subs=(1, 2, 5), numticks=MOST_TICKS).tick_values(low, high)
    else:
        values = np.linspace(low, high, 5)
    inside = [float(value) for value in values if low <= value <= high]
    return [(as_word(value), _height(axis, value, 0)) for value in inside]


def _label(panel: Axes, column: int, height: float, text: str) -> None:
    panel.annotate(
        text, (column, height), (-5, 0), textcoords="offset points", ha="right", va="center",
        fontsize=9, color=INK, zorder=1000,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
    )  # fmt: skip


def plot_tradeoffs(points: Sequence[Point], colour_by: str, title: str, path: Path) -> Path:
    """uSDR against trained parameters and against seconds per step, with the Pareto front of each.

    On the front are the trials than which no other is both better and cheaper. Colours and markers
    go by the values of the option ``colour_by``; hollow trials did not finish.
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    scored = [point for point in points if math.isfinite(point.usdr)]
    kinds = list(dict.fromkeys(_kind(point, colour_by) for point in scored))
    for panel, cost, label in zip(
        panels,
        ("parameters", "seconds_per_step"),
        ("trained parameters", "seconds per training step"),
        strict=True,
    ):
        known = [point for point in scored if getattr(point, cost) > 0]
        for point in known:
            kind = kinds.index(_kind(point, colour_by))
            colour = LINE_COLOURS[kind % len(LINE_COLOURS)]
            panel.plot(
                getattr(point, cost), point.usdr, MARKERS[kind % len(MARKERS)], color=colour,
                markersize=8, fillstyle="full" if point.finished else "none", zorder=3,
            )  # fmt: skip
        front = pareto_front([(getattr(point, cost), point.usdr) for point in known])
        on_front = [known[k] for k in front]
        panel.step(
            [getattr(point, cost) for point in on_front], [point.usdr for point in on_front],
            where="post", color=INK, linewidth=1, linestyle=(0, (4, 2)), zorder=2,
        )  # fmt: skip
        for point in on_front:
            panel.annotate(
                point.name.removeprefix("trial-"), (getattr(point, cost), point.usdr), (5, 5),
                textcoords="offset points", fontsize=8, color=INK,
            )  # fmt: skip
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel(label)
        panel.grid(color=PALE, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("validation uSDR in dB")
    handles = [
        Line2D([], [], linestyle="", color=LINE_COLOURS[k % len(LINE_COLOURS)],
               marker=MARKERS[k % len(MARKERS)], label=kind)
        for k, kind in enumerate(kinds) if kind
    ]  # fmt: skip
    handles.append(
        Line2D([], [], linestyle="", marker="o", color=INK, fillstyle="none", label="not finished")
    )
    handles.append(Line2D([], [], color=INK, linestyle=(0, (4, 2)), label="Pareto front"))
    panels[1].legend(handles=handles, frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return save_figure(figure, path)


def _kind(point: Point, colour_by: str) -> str:
    return f"{colour_by} {as_word(point.values[colour_by])}" if colour_by else ""


def _short(value: float) -> str:
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g}"


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Of (cost, score) pairs the positions of those that no other one beats, cost rising.

    One beats another when it costs no more and scores no less, and is not the same in both.
    """
    order = sorted(range(len(points)), key=lambda k: (points[k][0], -points[k][1]))
    front: list[int] = []
    highest = -math.inf
    for k in order:
        if points[k][1] > highest:
            front.append(k)
            highest = points[k][1]
    return front
