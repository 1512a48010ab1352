"""Figures hold what they claim to: looked up in the drawn objects, and in the files."""

import math
from pathlib import Path

import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from bsrnn_core.bands import bands
from bsrnn_core.config import StftConfig
from pipelines import plots
from pipelines.bands import BandsConfig, band_rows, run
from pipelines.cli import main

STFT = StftConfig()


def test_edges_lie_between_bins_and_widths_are_in_semitones() -> None:
    edges_hz = plots.band_edges_hz([(0, 4), (4, 1025)], STFT)
    assert edges_hz == [0.0, 3.5 * 44100 / 2048, 22050.0]
    assert plots.semitones(440, 880) == pytest.approx(12)
    assert plots.semitones(0, 40) == pytest.approx(12)  # from 20 Hz on


def test_bars_are_as_high_as_the_bands_are_wide(figures: list[Figure]) -> None:
    ranges = bands("v7", STFT.sample_rate, STFT.n_fft)
    plots.plot_bands(ranges, STFT, "v7", "v7.png")
    bars, keys = figures[0].axes
    rectangles = [patch for patch in bars.patches if isinstance(patch, Rectangle)]
    assert len(rectangles) == 41
    for bar in rectangles[1:]:
        low_hz, high_hz = bar.get_x(), bar.get_x() + bar.get_width()
        top = bar.get_y() + bar.get_height()
        assert top == pytest.approx(12 * math.log2(high_hz / low_hz))
    (edges,) = [c for c in keys.collections if isinstance(c, LineCollection)]
    assert len(edges.get_segments()) == 40
    assert [label.get_text().split("\n")[0] for label in keys.get_xticklabels()] == [
        f"C{octave}" for octave in range(1, 11)
    ]
    key_centres = [math.sqrt(k.get_x() * (k.get_x() + k.get_width())) for k in keys.patches]  # type: ignore[attr-defined]
    assert min(abs(hz - 440) for hz in key_centres) < 0.1


@pytest.mark.parametrize(("schema", "sample_rate"), [("generic", 44100), ("v1", 8000)])
def test_any_schema_at_any_rate_can_be_drawn(tmp_path: Path, schema: str, sample_rate: int) -> None:
    stft = StftConfig(sample_rate=sample_rate)
    ranges = bands(schema, sample_rate, stft.n_fft)
    path = plots.plot_bands(ranges, stft, schema, tmp_path / "new" / "bands.png")
    assert imread(path).shape[1] > 1000
    assert [file.name for file in path.parent.iterdir()] == ["bands.png"]


def test_spectrograms_share_one_scale_and_show_their_signal(figures: list[Figure]) -> None:
    seconds = torch.arange(44100) / 44100
    loud = torch.sin(2 * math.pi * 1000 * seconds).expand(2, -1)
    plots.plot_spectrograms(
        {"mixture": loud, "reference": 0.1 * loud, "estimate": torch.zeros(2, 44100)},
        44100, "one kilohertz", "x.png",
    )  # fmt: skip
    *panels, _ = figures[0].axes
    assert [axes.get_title() for axes in panels] == ["mixture", "reference", "estimate"]
    images = [axes.images[0] for axes in panels]
    assert {image.get_clim() for image in images} == {(-80.0, 0.0)}
    levels = [torch.as_tensor(image.get_array()) for image in images]
    assert levels[0].max() == pytest.approx(0, abs=0.1)
    assert levels[1].max() == pytest.approx(-20, abs=0.1)
    assert levels[2].max() < -80
    assert levels[0].argmax(0).median() == round(1000 * 2048 / 44100)
    assert images[0].get_extent() == [0, 1, 0, 22.05]


@pytest.mark.parametrize("num_samples", [1, 5_000_000])
def test_spectrograms_of_any_length_stay_small(figures: list[Figure], num_samples: int) -> None:
    plots.plot_spectrograms({"song": torch.ones(1, num_samples)}, 44100, "", "x.png")
    columns = torch.as_tensor(figures[0].axes[0].images[0].get_array()).shape[1]
    assert 1 <= columns <= plots.MAX_COLUMNS


def test_curves_hold_their_points(figures: list[Figure]) -> None:
    curves = {"loss": {"drums": ([0, 1], [2.0, 1.0])}, "uSDR": {"a": ([5], [1.0]), "b": ([5], [2])}}
    plots.plot_curves(curves, "a run", "x.png")
    loss, usdr = figures[0].axes
    assert loss.lines[0].get_xydata().tolist() == [[0, 2], [1, 1]]  # type: ignore[union-attr]
    assert [line.get_label() for line in usdr.lines] == ["a", "b"]
    assert (loss.get_ylabel(), usdr.get_ylabel()) == ("loss", "uSDR")
    assert usdr.lines[0].get_marker() != usdr.lines[1].get_marker() != "None"


def test_the_files_are_pictures_and_an_error_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plots.plot_curves({"loss": {"x": ([0], [1])}}, "", tmp_path / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")

    def breaks(self: Figure, file: Path, **_: object) -> None:
        file.write_text("half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", breaks)
    with pytest.raises(OSError, match="disk full"):
        plots.plot_curves({"loss": {"x": ([0], [1])}}, "", tmp_path / "new.png")
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_the_command_prints_the_bands_and_draws_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "generic.png"
    assert main(["bands", "--band_schema", "generic", "--num_bands", "30", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "generic: 30 bands at 44.1 kHz, n_fft 2048" in printed
    assert str(out) in printed.replace("\n", "")
    assert out.exists()
    assert run(BandsConfig()) == bands("v7", 44100, 2048)
    assert main(["bands", "--band_schema", "v9"]) == 2
    assert main(["bands", "--band_schema", "joint57", "--n_fft", "256"]) == 0
    assert "narrower than a bin" in capsys.readouterr().out


def test_rows_of_bands_tile_the_spectrum() -> None:
    ranges = bands("drums", 44100, 2048)
    rows = band_rows(ranges, STFT)
    assert rows[0][:2] == [0, "0-2"]
    assert [row[2] for row in rows[1:]] == [row[3] for row in rows[:-1]]
    assert rows[-1][3] == 22050.0
