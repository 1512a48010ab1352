"""Seconds against uSDR: how songs are best cut into windows, beside the paper's procedure.

    python benchmarks/separation.py --checkpoint_fp runs/drums/best --musdbhq_location songs

Every row separates the same songs with the same weights, in this process, one row after the other.
The paper (arXiv 2209.15174) takes windows of 3 s every 0.5 s in float32. The table has seconds per
minute of music, times faster than the paper's procedure, and the uSDR's difference from it; the
figure (--figure) draws them. --musdbhq_location may be any corpus that `bsrnn evaluate` takes.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bsrnn_core import BSRNN, load, separate
from bsrnn_core.config import SeparationConfig
from bsrnn_core.metrics import usdr
from bsrnn_core.precision import use_bf16
from data_prep.config import SourceConfig
from data_prep.tracks import find_tracks, read_track
from pipelines import display, plots

PAPER = SeparationConfig(window_seconds=3, overlap=5 / 6, batch_size=1, precision="float32")
WINDOWS = (
    *((3, 2 / 3), (3, 0.5), (3, 0.25), (3, 0), (6, 0.25), (6, 0.1), (12, 0.5), (12, 0.25)),
    *((12, 0.1), (12, 0.05), (12, 0), (24, 0.05), (60, 0.05)),
)
"""Seconds and overlap."""


@dataclass(frozen=True, kw_only=True)
class Song:
    """A song's mixture [C, N], and the reference [C, N] of the stem that is scored."""

    mixture: torch.Tensor
    reference: torch.Tensor
    sample_rate: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a way of cutting songs costs, and gives."""

    config: SeparationConfig
    seconds_per_minute: float
    usdr: float


def measure(model: BSRNN, songs: Sequence[Song], config: SeparationConfig) -> Row:
    """Time and mean uSDR of the model's first stem."""
    seconds, scores = 0.0, []
    for song in songs:
        started = time.perf_counter()
        estimate = separate(model, song.mixture, song.sample_rate, config)[model.stems[0]]
        seconds += time.perf_counter() - started
        scores.append(usdr(song.reference, estimate))
    music = sum(song.mixture.shape[-1] / song.sample_rate for song in songs)
    return Row(
        config=config,
        seconds_per_minute=60 * seconds / music,
        usdr=sum(scores) / len(scores),
    )


def read_songs(location: str, stem: str, num_songs: int, seconds: float) -> list[Song]:
    """The beginnings of the first test songs of a corpus."""
    source = SourceConfig(musdbhq_location=location)
    songs = []
    for track in [track for track in find_tracks(source) if track.split == "test"][:num_songs]:
        audio = read_track(track, source.stem_names, sample_rate=None, lengths=source.lengths)
        reference = audio.references[source.stem_names.index(stem)]
        count = round(seconds * audio.sample_rate)
        songs.append(
            Song(
                mixture=audio.mixture[:, :count],
                reference=reference[:, :count],
                sample_rate=audio.sample_rate,
            )
        )
    return songs


def draw(rows: Sequence[Row], title: str, path: str) -> None:
    """uSDR against seconds: a panel per number format, a line per length, a point per overlap."""
    panels: dict[str, dict[str, plots.Curve]] = {}
    for precision in dict.fromkeys(row.config.precision for row in rows):
        lines: dict[str, list[Row]] = {}
        for row in rows:
            if row.config.precision == precision:
                lines.setdefault(f"{row.config.window_seconds:g} s", []).append(row)
        panels[f"uSDR in dB, {precision}"] = {
            name: ([row.seconds_per_minute for row in line], [row.usdr for row in line])
            for name, line in lines.items()
        }
    plots.plot_curves(panels, title, path, "seconds per minute of music")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint_fp", required=True)
    parser.add_argument("--musdbhq_location", required=True)
    parser.add_argument("--num_songs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120, help="of each song")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--figure", help="where to draw it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    model = load(options.checkpoint_fp, device)
    songs = read_songs(options.musdbhq_location, model.stems[0], options.num_songs, options.seconds)
    floor = sum(usdr(song.reference, song.mixture) for song in songs) / len(songs)
    formats = ("float32", "bf16") if use_bf16("auto", device) else ("float32",)
    ways = [PAPER] + [
        SeparationConfig(window_seconds=window, overlap=overlap, precision=precision)
        for precision in formats
        for window, overlap in WINDOWS
    ]
    # The first window is slower: kernels are chosen, memory is taken.
    separate(model, songs[0].mixture[:, : 3 * songs[0].sample_rate], songs[0].sample_rate, PAPER)
    rows = []
    for way in ways:
        rows.append(measure(model, songs, way))
        print(way, f"{rows[-1].seconds_per_minute:.2f} s", f"{rows[-1].usdr:.3f} dB", flush=True)
    paper = rows[0]
    title = (
        f"{model.stems[0]}, {len(songs)} songs of {options.seconds:g} s, {options.threads} threads "
        f"on {device}; the mixture has {floor:.2f} dB"
    )
    display.show(
        title,
        ("window", "overlap", "numbers", "s per minute", "times faster", "uSDR", "difference"),
        [
            [
                f"{row.config.window_seconds:g} s",
                row.config.overlap,
                row.config.precision,
                row.seconds_per_minute,
                paper.seconds_per_minute / row.seconds_per_minute,
                f"{row.usdr:.3f}",
                f"{row.usdr - paper.usdr:+.3f}",
            ]
            for row in rows
        ],
    )
    if options.figure:
        draw(rows, f"{model.stems[0]}: windows of these lengths, and overlaps", options.figure)


if __name__ == "__main__":
    main()
