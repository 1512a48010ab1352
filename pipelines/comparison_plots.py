"""Figures of a comparison: a colour family per band schema, a panel or hatch per way of training.

Every line and bar can be told without colour too: by marker and filling, or by place and hatch.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from pipelines.comparison_groups import Comparison, Group, MeanCurve
from pipelines.display import DISPLAY, text
from pipelines.plots import INK, PALE, save_figure
from pipelines.scoring import Measure

FAMILIES = {"v7": "Reds", "generic": "Blues"}
"""Colour maps whose shades mean these band schemas."""
MORE_FAMILIES = ("Greens", "Purples", "Oranges", "Greys", "Reds", "Blues")
"""For others, in this order, as far as they are not taken."""
MARKERS = "osD^vPX*"
FILLS = ("full", "none", "left", "bottom")
"""Of the markers, by schema."""
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "+++", "ooo")
MAX_MARKERS = 12
"""Of a line; more would hide it."""
MAX_COLUMNS = 3
"""Panels side by side."""


@dataclass(frozen=True, slots=True)
class Styles:
    """How a comparison's values are told apart: one of them by colour, the others by panel."""

    comparison: Comparison
    family_at: int
    """Which of the values the colour stands for."""

    @classmethod
    def of(cls, comparison: Comparison) -> "Styles":
        """Colours go by band schema, and by the first value where that is not compared."""
        names = comparison.by
        return cls(comparison, names.index("band_schema") if "band_schema" in names else 0)

    @property
    def families(self) -> tuple[str, ...]:
        """The values that have colours."""
        return self.comparison.values[self.family_at]

    @property
    def panels(self) -> tuple[tuple[str, ...], ...]:
        """The other values, in order."""
        orders = [order for k, order in enumerate(self.comparison.values) if k != self.family_at]
        found = {self.split(key)[1] for key in self.comparison.keys}
        return tuple(
            sorted(found, key=lambda p: [o.index(v) for o, v in zip(orders, p, strict=True)])
        )

    def split(self, key: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """A group's family and panel."""
        return key[self.family_at], key[: self.family_at] + key[self.family_at + 1 :]

    def group(self, family: str, panel: tuple[str, ...], stem: str) -> Group | None:
        """The group of a family, panel and stem, if there is one."""
        key = (*panel[: self.family_at], family, *panel[self.family_at :])
        return self.comparison.group(key, stem)

    def shade(self, family: str, k: int, of: int) -> str:
        """The ``k``-th of a family's shades, from dark to light."""
        taken = [FAMILIES[name] for name in self.families if name in FAMILIES]
        free = [name for name in MORE_FAMILIES if name not in taken]
        others = [name for name in self.families if name not in FAMILIES]
        colours = FAMILIES.get(family) or free[others.index(family) % len(free)]
        darkness = 0.8 if of == 1 else 0.95 - 0.5 * k / (of - 1)
        return to_hex(matplotlib.colormaps[colours](darkness))


def panel_name(panel: Sequence[str]) -> str:
    """What a panel is called."""
    return ", ".join(value or "-" for value in panel)


def plot_validation(comparison: Comparison, title: str, path: str | Path) -> Path:
    """Validation uSDR by epoch: a panel per way of training, a line per schema and stem.

    A line is the mean over the runs, with a band from the lowest to the highest of them; it is
    dotted where one of them has ended. The legend gives the mean of the runs' last values.
    """
    styles = Styles.of(comparison)
    drawn = [p for p in styles.panels if any(group.curve.epochs for _, _, group in _of(styles, p))]
    columns = min(MAX_COLUMNS, max(1, len(drawn)))
    rows = math.ceil(max(1, len(drawn)) / columns)
    most = max((len(_of(styles, panel)) for panel in drawn), default=1)
    height = 3.4 + 0.24 * math.ceil(most / min(2, len(styles.families)))
    size = (max(6.0, 4.4 * columns), height * rows)
    figure = Figure(figsize=size, layout="constrained")
    cells = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes, panel in zip(cells, drawn, strict=False):
        _draw_panel(axes, styles, panel)
    for axes in cells[max(1, len(drawn)) :]:
        axes.set_visible(False)
    if not drawn:
        _say(figure.axes[0], "no validation is recorded by epoch")
    for axes in figure.axes[::columns]:
        axes.set_ylabel("validation uSDR in dB")
    caption = ("\n" if columns == 1 else "; ").join(_caption(comparison))
    figure.supxlabel(caption, fontsize=8.5, color="#666666")
    figure.suptitle(title, color=INK)
    return save_figure(figure, path)


def _caption(comparison: Comparison) -> list[str]:
    """What lines and bands mean, as far as there are any."""
    curves = [group.curve for group in comparison.groups if group.curve.epochs]
    parts: list[str] = []
    if any(curve.low != curve.high for curve in curves):
        parts.append("lines: mean over runs; bands: lowest to highest run")
    if any(curve.complete_until < curve.epochs[-1] for curve in curves):
        parts.append("dotted: a run has ended, and counts on with its last value")
    return parts


def _of(styles: Styles, panel: tuple[str, ...]) -> list[tuple[str, int, Group]]:
    """The groups of a panel with their families and the places of their stems."""
    return [
        (family, k, group)
        for family in styles.families
        for k, stem in enumerate(styles.comparison.stems)
        if (group := styles.group(family, panel, stem)) is not None
    ]


def _draw_panel(axes: Axes, styles: Styles, panel: tuple[str, ...]) -> None:
    stems = styles.comparison.stems
    for family, k, group in _of(styles, panel):
        if group.curve.epochs:
            fill = FILLS[styles.families.index(family) % len(FILLS)]
            label = f"{family or '-'} {group.stem}  {text(group.curve.final)}"
            _draw_curve(
                axes,
                group.curve,
                styles.shade(family, k, len(stems)),
                MARKERS[k % 8],
                fill,
                label,
            )
    axes.set_title(panel_name(panel), fontsize=11, color=INK)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelleft=True)
    _tidy(axes)
    families = len({family for family, _, group in _of(styles, panel) if group.curve.epochs})
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=min(2, families), frameon=False,
        fontsize=8.5, columnspacing=1.2, handlelength=2.4,
    )  # fmt: skip


def _draw_curve(
    axes: Axes, curve: MeanCurve, colour: str, marker: str, fill: str, label: str
) -> None:
    epochs, mean = np.asarray(curve.epochs), np.asarray(curve.mean)
    complete = epochs <= curve.complete_until
    # White, where matplotlib's own "none" would show the line through the marker.
    filling = {"fillstyle": "full" if fill == "none" else fill, "markerfacecoloralt": "white"}
    style: dict[str, Any] = {
        **filling,
        "color": colour,
        "marker": marker,
        "markersize": 4.5,
        "linewidth": 1.5,
        "markerfacecolor": "white" if fill == "none" else colour,
        "markevery": math.ceil(len(epochs) / MAX_MARKERS),
    }
    axes.plot(epochs[complete], mean[complete], label=label, **style)
    if not complete.all():
        # From the last complete point on, so that no gap stands between the two.
        rest = slice(max(0, int(complete.sum()) - 1), None)
        axes.plot(epochs[rest], mean[rest], **{**style, "linestyle": ":", "marker": ""})
    if curve.low != curve.high:
        axes.fill_between(epochs, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)


def plot_scores(
    comparison: Comparison, title: str, path: str | Path, measure: Measure = "usdr"
) -> Path:
    """Test scores as bars: by stem, in it by way of training (hatch), in it by schema (colour).

    Bars are means over the runs, their whiskers the standard deviation, and each dot is a run; the
    mixture taken as the estimate is a line across its stem.
    """
    styles = Styles.of(comparison)
    shades = len(styles.panels)
    figure = Figure(figsize=(max(6.0, 3.0 + 0.24 * len(comparison.groups)), 4.6))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    left = 0.0
    ticks: list[float] = []
    for stem in comparison.stems:
        first, right = left, left
        for place, group in _places(styles, stem, left):
            family, panel = styles.split(group.key)
            k = styles.panels.index(panel)
            _draw_bar(axes, place, group, measure, styles.shade(family, k, shades), HATCHES[k % 8])
            right = place
        floor = comparison.floor[measure, stem].mean
        if math.isfinite(floor):
            axes.hlines(floor, first - 0.6, right + 0.6, colors=INK, linewidth=1.6)
        ticks.append((first + right) / 2)
        left = right + 2.4
    axes.axhline(0, color=INK, linewidth=0.8)
    middle, half = (left - 2.4) / 2, max((left - 2.4) / 2, 2.5) + 1
    axes.set_xlim(middle - half, middle + half)
    axes.set_xticks(ticks, comparison.stems)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(f"test {DISPLAY[measure]} in dB")
    _tidy(axes)
    axes.grid(visible=False, axis="x")
    axes.legend(
        handles=_score_legend(styles), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False,
        fontsize=9,
    )  # fmt: skip
    figure.suptitle(title, color=INK)
    return save_figure(figure, path)


def _places(styles: Styles, stem: str, left: float) -> Iterator[tuple[float, Group]]:
    """The bars of a stem with their places, a gap between the ways of training."""
    place = left
    for panel in styles.panels:
        groups = [styles.group(family, panel, stem) for family in styles.families]
        present = [group for group in groups if group is not None]
        for group in present:
            yield place, group
            place += 1
        place += 0.4 if present else 0


def _draw_bar(
    axes: Axes, place: float, group: Group, measure: Measure, colour: str, hatch: str
) -> None:
    scores = group.test[measure]
    if not scores.finite:
        axes.annotate("nan", (place, 0), (0, 3), textcoords="offset points", rotation=90,
                      ha="center", fontsize=8, color=INK)  # fmt: skip
        return
    axes.bar(place, scores.mean, 0.94, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4)
    if math.isfinite(scores.spread):
        axes.errorbar(place, scores.mean, scores.spread, color=INK, capsize=2.5, linewidth=1)
        offsets = np.linspace(-0.22, 0.22, len(scores.finite))
        axes.plot(place + offsets, scores.finite, "o", color="white", mec=INK, mew=0.7, ms=3.2)


def _score_legend(styles: Styles) -> list[Patch | Line2D]:
    panels = styles.panels
    handles: list[Patch | Line2D] = [
        Patch(color=styles.shade(family, 0, 1), label=family or "-") for family in styles.families
    ]
    for k, panel in enumerate(panels):
        if panel:
            grey = str(0.25 + 0.5 * k / max(1, len(panels) - 1))
            handles.append(
                Patch(
                    facecolor=grey, hatch=HATCHES[k % 8], edgecolor="white", label=panel_name(panel)
                )
            )
    if any(len(group.runs) > 1 for group in styles.comparison.groups):
        dot: dict[str, Any] = {"linestyle": "none", "markeredgecolor": INK}
        handles += [
            Line2D([], [], marker="o", color="white", markersize=4, label="one run", **dot),
            Line2D([], [], marker="|", markersize=11, label="± standard deviation", **dot),
        ]
    handles.append(Line2D([], [], color=INK, linewidth=1.6, label="mixture (floor)"))
    return handles


def plot_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str,
    path: str | Path,
    *,
    words: int = 1,
    bold: Collection[tuple[int, int]] = (),
    rules: Collection[int] = (),
) -> Path:
    """A table as a picture: ``bold`` cells by row and column, a rule above each row in ``rules``.

    The first columns, as many as ``words``, are set to the left, the others to the right. What the
    first column repeats from the row above is left away.
    """
    row_in, gap_in = 0.27, 0.28
    lengths = [max(len(line[k]) for line in [header, *rows]) for k in range(len(header))]
    widths_in = [0.085 * length + gap_in for length in lengths]
    edges = np.concatenate([[0.0], np.cumsum(widths_in)])
    height_in = row_in * (len(rows) + 1)
    title_lines = title.split("\n")
    title_in = 0.25 * len(title_lines)
    width_in = max(edges[-1], *(0.085 * len(line) for line in title_lines))
    figure = Figure(figsize=(width_in + 0.3, height_in + title_in + 0.45))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(-0.15, width_in + 0.15)
    axes.set_ylim(height_in + 0.15, -title_in - 0.3)
    axes.text(gap_in / 2, -0.12, title, fontsize=11, color=INK, va="bottom")
    lines = [header, *rows]
    for number, line in enumerate(lines):
        for k, cell in enumerate(line):
            if k == 0 and words > 1 and number and cell == lines[number - 1][0]:
                continue
            side = "left" if k < words else "right"
            x = edges[k] + gap_in / 2 if k < words else edges[k + 1] - gap_in / 2
            weight = "bold" if number == 0 or (number - 1, k) in bold else "normal"
            y = row_in * (number + 0.5)
            axes.text(x, y, cell, fontsize=10, color=INK, ha=side, va="center", weight=weight)
    for number, width in ((0, 1.4), (1, 0.8), *((row + 1, 0.4) for row in rules)):
        axes.hlines(row_in * number, 0, edges[-1], colors=INK, linewidth=width)
    axes.hlines(height_in, 0, edges[-1], colors=INK, linewidth=1.4)
    return save_figure(figure, path)


def _say(axes: Axes, sentence: str) -> None:
    axes.text(0.5, 0.5, sentence, ha="center", va="center", transform=axes.transAxes, color=INK)


def _tidy(axes: Axes) -> None:
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
