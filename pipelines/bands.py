"""Show a band schema: a table of its bands, and a picture of them against the notes.

bsrnn bands --band_schema v7 --out docs/figures/bands-v7.png
"""

import sys
from dataclasses import dataclass, field

from bsrnn_core.bands import merged_bands, model_bands
from bsrnn_core.config import ModelConfig, StftConfig
from pipelines import display
from pipelines.plots import band_edges_hz, plot_bands, semitones

HEADER = ("band", "bins", "from Hz", "to Hz", "width Hz", "semitones")


@dataclass(frozen=True, kw_only=True, slots=True)
class BandsConfig:
    """Options of `bsrnn bands`; of the model's, those that shape the bands."""

    out: str | None = None
    """Image file of the picture (none when not given)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    stft: StftConfig = field(default_factory=StftConfig)


def run(config: BandsConfig) -> list[tuple[int, int]]:
    """Print the table, draw the picture, and return the bands as half-open ranges of bins."""
    ranges = model_bands(config.stft, config.model)
    schema = config.model.band_schema
    title = (
        f"{schema}: {len(ranges)} bands at {config.stft.sample_rate / 1000:g} kHz, "
        f"n_fft {config.stft.n_fft}"
    )
    display.show(title, HEADER, band_rows(ranges, config.stft))
    merged = merged_bands(
        schema, config.stft.sample_rate, config.stft.n_fft, splits=config.model.splits
    )
    if merged:
        print(f"{merged} bands of {schema} are narrower than a bin and merged into the one above")
    if config.out is not None:
        print(f"picture: {plot_bands(ranges, config.stft, title, config.out)}")
    return ranges


def band_rows(ranges: list[tuple[int, int]], stft: StftConfig) -> list[list[display.Cell]]:
    """A row per band, as named by ``HEADER``: the bins are first to last, both included."""
    edges_hz = band_edges_hz(ranges, stft)
    rows: list[list[display.Cell]] = []
    for k, (first, end) in enumerate(ranges):
        low_hz, high_hz = edges_hz[k], edges_hz[k + 1]
        bins = f"{first}" if end == first + 1 else f"{first}-{end - 1}"
        width = semitones(low_hz, high_hz)
        rows.append([k, bins, low_hz, high_hz, high_hz - low_hz, max(width, 0.0)])
    return rows


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["bands", *sys.argv[1:]]))
