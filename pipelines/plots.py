"""Every figure but those of a comparison, drawn without a display (matplotlib)."""

import itertools
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullLocator
from torch import Tensor

from bsrnn_core.bands import A4_HZ, AUDIBLE_HZ
from bsrnn_core.config import StftConfig
from bsrnn_core.stft import stft
from data_prep.atomic import AtomicPath

# Okabe and Ito's colours, which people with any colour vision tell apart.
BLUE, SKY, ORANGE, GREEN, VERMILLION, PURPLE = (
    "#0072B2",
    "#56B4E9",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
)
LINE_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
INK, PALE = "#222222", "#CCCCCC"

MAX_COLUMNS = 1600
"""Spectrogram columns that a panel can show; more are joined, keeping the loudest."""
DYNAMIC_RANGE_DB = 80.0
A4_MIDI = 69

IMAGE_HZ = (40.0, 16000.0)
"""What images of spectrograms show, on a log axis, of a sample rate that reaches so high."""
IMAGE_ROWS, IMAGE_COLUMNS = 128, 700
IMAGE_FFT = 4096


def band_edges_hz(bands: Sequence[tuple[int, int]], stft_config: StftConfig) -> list[float]:
    """The K + 1 frequencies between which the bands lie, from 0 to Nyquist.

    An inner edge is halfway between the centres of the two bins that it parts.
    """
    bin_hz = stft_config.sample_rate / stft_config.n_fft
    inner = [(first - 0.5) * bin_hz for first, _ in bands[1:]]
    return [0.0, *inner, stft_config.sample_rate / 2]


def semitones(low_hz: float, high_hz: float) -> float:
    """Width of a band in semitones, counted from the lowest audible frequency."""
    return 12 * math.log2(high_hz / max(low_hz, AUDIBLE_HZ[0]))


def plot_bands(
    bands: Sequence[tuple[int, int]], stft_config: StftConfig, title: str, path: str | Path
) -> Path:
    """A band schema against the notes, on a log axis.

    Each band is a bar from its lower to its upper edge, as high as it is wide in semitones. Below
    it the notes of equal temperament, black and white as on a piano, with the edges that cut them.
    """
    edges_hz = band_edges_hz(bands, stft_config)
    figure = Figure(figsize=(13, 5.4), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(5, 1), hspace=0.02)
    bars = figure.add_subplot(grid[0])
    keys = figure.add_subplot(grid[1], sharex=bars)
    bars.set_xscale("log")
    bars.set_xlim(AUDIBLE_HZ[0], max(edges_hz[-1], 2 * AUDIBLE_HZ[0]))
    _draw_bars(bars, edges_hz)
    _draw_keys(keys, edges_hz)
    bars.set_title(title, loc="left", fontsize=13, color=INK)
    bars.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
    bars.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def _draw_bars(axes: Axes, edges_hz: Sequence[float]) -> None:
    lowest = 0.25
    widths = [semitones(low, high) for low, high in itertools.pairwise(edges_hz)]
    for k, width in enumerate(widths):
        low_hz, high_hz = max(edges_hz[k], AUDIBLE_HZ[0]), edges_hz[k + 1]
        if high_hz <= low_hz:
            continue
        colour = (BLUE, SKY)[k % 2]
        axes.add_patch(Rectangle((low_hz, lowest), high_hz - low_hz, width - lowest, color=colour))
        if k % 5 == 0:
            middle_hz = math.sqrt(low_hz * high_hz)
            axes.annotate(
                str(k), (middle_hz, width), (0, 3), textcoords="offset points", ha="center",
                fontsize=8, color=INK,
            )  # fmt: skip
    axes.set_yscale("log", base=2)
    axes.set_ylim(lowest, 2.2 * max(*widths, 12.0))
    names = {0.5: "½", 1: "semitone 1", 2: "2", 3: "3", 6: "6", 12: "octave 12", 24: "24", 48: "48"}
    ticks = {tick: name for tick, name in names.items() if tick < axes.get_ylim()[1]}
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("width in semitones")
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    for tick in (1, 12):
        axes.axhline(tick, color=VERMILLION, linewidth=1, linestyle=(0, (4, 3)))


def _draw_keys(axes: Axes, edges_hz: Sequence[float]) -> None:
    """Each note as a key one semitone wide; edges as lines; the C of each octave named."""
    lowest, highest = (_midi(hz) for hz in (AUDIBLE_HZ[0], edges_hz[-1]))
    for midi in range(math.floor(lowest), math.ceil(highest) + 1):
        low_hz, high_hz = _note_hz(midi - 0.5), _note_hz(midi + 0.5)
        black = midi % 12 in (1, 3, 6, 8, 10)
        axes.add_patch(
            Rectangle((low_hz, 0), high_hz - low_hz, 1, facecolor="#555555" if black else "white",
                      edgecolor="#999999", linewidth=0.3)
        )  # fmt: skip
    axes.add_collection(
        LineCollection(
            [[(hz, 0.0), (hz, 1.0)] for hz in edges_hz[1:-1]], colors=VERMILLION, linewidths=1.3
        )
    )
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_ylabel("notes", rotation=0, ha="right", va="center")
    octaves = range(1, math.floor(highest / 12))
    hz = [_note_hz(12 * (octave + 1)) for octave in octaves]
    axes.set_xticks(
        hz, [f"C{octave}\n{_short_hz(f)}" for octave, f in zip(octaves, hz, strict=True)]
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("note and frequency; red: where one band ends and the next begins")


def _midi(hz: float) -> float:
    return A4_MIDI + 12 * math.log2(hz / A4_HZ)


def _note_hz(midi: float) -> float:
    return A4_HZ * 2 ** ((midi - A4_MIDI) / 12)


def _short_hz(hz: float) -> str:
    return f"{hz:.0f} Hz" if hz < 1000 else f"{hz / 1000:.1f} kHz"


def plot_spectrograms(
    signals: Mapping[str, Tensor], sample_rate: int, title: str, path: str | Path
) -> Path:
    """Spectrograms of like signals side by side: panel name -> samples [C, N], one colour scale.

    Decibels below the loudest point of all panels, the channels' powers averaged.
    """
    config = StftConfig(sample_rate=sample_rate)
    powers = {name: _power(samples, config) for name, samples in signals.items()}
    loudest = max(max(power.max().item() for power in powers.values()), 1e-12)
    figure = Figure(figsize=(4.3 * len(powers) + 1, 4.2), layout="constrained")
    panels = figure.subplots(1, len(powers), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, power) in zip(panels, powers.items(), strict=True):
        level_db = 10 * torch.log10((power / loudest).clamp_min(1e-12))
        axes.imshow(
            level_db.numpy(), origin="lower", aspect="auto", cmap="magma",
            vmin=-DYNAMIC_RANGE_DB, vmax=0, interpolation="nearest",
            extent=(0, signals[name].shape[-1] / sample_rate, 0, sample_rate / 2000),
        )  # fmt: skip
        axes.set_title(name)
        axes.set_xlabel("seconds")
        # Equal steps per octave where music is, without losing 0 Hz.
        axes.set_yscale("symlog", linthresh=0.5, base=2)
        ticks = [kilohertz for kilohertz in (0, 0.25, 0.5, 1, 2, 4, 8, 16) if
                 kilohertz <= sample_rate / 2000]  # fmt: skip
        axes.set_yticks(ticks, [f"{kilohertz:g}" for kilohertz in ticks])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0, sample_rate / 2000)
    panels[0].set_ylabel("kHz")
    figure.colorbar(panels[-1].images[0], ax=list(panels), label="dB", pad=0.01)
    figure.suptitle(title)
    return save_figure(figure, path)


def _power(samples: Tensor, config: StftConfig, max_columns: int = MAX_COLUMNS) -> Tensor:
    """Power [F, at most max_columns] of samples [C, N], averaged over channels."""
    power = stft(samples.detach().float().cpu(), config).abs().square().mean(0)
    joined = math.ceil(power.shape[-1] / max_columns)
    return torch.nn.functional.max_pool1d(power, joined, ceil_mode=True)


def spectrogram_images(
    signals: Mapping[str, Tensor], sample_rate: int
) -> tuple[dict[str, bytes], tuple[float, float]]:
    """Spectrograms without axes, as WebP files: name -> samples [C, N], to name -> bytes.

    Time goes from the left to the right edge, the log of frequency from the lower to the upper, of
    which the frequencies in Hz are returned too. Decibels below the loudest point of all signals.
    """
    config = StftConfig(sample_rate=sample_rate, n_fft=IMAGE_FFT)
    low_hz, high_hz = IMAGE_HZ[0], min(IMAGE_HZ[1], sample_rate / 2)
    edges = np.geomspace(low_hz, high_hz, IMAGE_ROWS + 1) * IMAGE_FFT / sample_rate
    powers = {}
    for name, samples in signals.items():
        power = _power(samples, config, IMAGE_COLUMNS)
        # Of several bins in a row the loudest, as of several frames in a column.
        rows = [power[int(low) : math.ceil(high)] for low, high in itertools.pairwise(edges)]
        powers[name] = torch.stack([row.amax(0) for row in rows])
    loudest = max(max(power.max().item() for power in powers.values()), 1e-12)
    images = {}
    for name, power in powers.items():
        level_db = 10 * torch.log10((power / loudest).clamp_min(1e-12))
        file = BytesIO()
        imsave(
            file, level_db.numpy(), origin="lower", cmap="magma", format="webp",
            vmin=-DYNAMIC_RANGE_DB, vmax=0, pil_kwargs={"quality": 75},
        )  # fmt: skip
        images[name] = file.getvalue()
    return images, (low_hz, high_hz)


Curve = tuple[Sequence[float], Sequence[float]]
"""The x and the y values of a line."""


def plot_curves(
    panels: Mapping[str, Mapping[str, Curve]], title: str, path: str | Path, x_label: str = "step"
) -> Path:
    """Training curves: a panel per quantity (its name is the y axis's), in it a line per name."""
    figure = Figure(figsize=(5.5 * len(panels), 3.8), layout="constrained")
    columns = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (quantity, curves) in zip(columns, panels.items(), strict=True):
        for k, (name, (x, y)) in enumerate(curves.items()):
            # A marker shows a curve of a single point, and tells lines apart without colour.
            marker = "osD^vP"[k % 6] if len(x) <= 40 else None
            colour = LINE_COLOURS[k % len(LINE_COLOURS)]
            axes.plot(np.asarray(x), np.asarray(y), color=colour, marker=marker, ms=4, label=name)
        axes.set_xlabel(x_label)
        axes.set_ylabel(quantity)
        axes.grid(color=PALE, linewidth=0.6)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(title)
    return save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as its ending says, whole or not at all."""
    path = Path(path)
    with AtomicPath(path) as unfinished:
        figure.savefig(unfinished, dpi=130, format=path.suffix.lstrip(".") or "png")
    return path
