"""Band schemas: they tile the bins, have the counts of the paper, and generic bands hold notes."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsrnn_core.bands import SCHEMAS, bands, merged_bands, model_bands
from bsrnn_core.config import ModelConfig, StftConfig
from bsrnn_core.errors import BadInput

PAPER_COUNTS = {
    "v1": 22,
    "v2": 19,
    "v3": 14,
    "v4": 23,
    "v5": 28,
    "v6": 26,
    "v7": 41,
    "bass": 30,
    "drums": 55,
    "joint57": 57,
}

sample_rates = st.integers(1, 192_000)
n_ffts = st.integers(8, 4096).map(lambda half: 2 * half)


@st.composite
def custom_splits(draw):
    splits, edge_hz = [], 0.0
    for gap_hz in draw(st.lists(st.floats(2, 20_000), min_size=1, max_size=6)):
        below_hz, edge_hz = edge_hz, edge_hz + gap_hz
        width_hz = draw(st.floats(max(1.0, gap_hz / 40), gap_hz))
        splits.append((edge_hz, min(width_hz, edge_hz - below_hz)))
    return splits


def assert_tiles(ranges, n_fft):
    assert ranges[0][0] == 0
    assert ranges[-1][1] == n_fft // 2 + 1
    assert all(first < end for first, end in ranges)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))


@given(st.sampled_from(sorted(SCHEMAS)), sample_rates, n_ffts)
def test_table_tiles_every_bin(schema, sample_rate, n_fft):
    ranges = bands(schema, sample_rate, n_fft)
    assert_tiles(ranges, n_fft)
    assert merged_bands(schema, sample_rate, n_fft) >= 0
    assert len(ranges) <= PAPER_COUNTS[schema]


@given(custom_splits(), sample_rates, n_ffts)
def test_custom_tiles_every_bin(splits, sample_rate, n_fft):
    assert_tiles(bands("custom", sample_rate, n_fft, splits=splits), n_fft)
    assert merged_bands("custom", sample_rate, n_fft, splits=splits) >= 0


@given(sample_rates, n_ffts, st.integers(1, 30).map(lambda half: 2 * half), st.integers(1, 130))
def test_generic_makes_exactly_the_bands_asked_for_or_says_how_many_it_can(
    sample_rate, n_fft, divisions, num_bands
):
    options = {"divisions": divisions}
    try:
        ranges = bands("generic", sample_rate, n_fft, num_bands=num_bands, **options)
    except BadInput as error:
        most = int(str(error).split("it makes 1 to ")[1].split(";")[0])
        assert most < num_bands
        num_bands = most
        ranges = bands("generic", sample_rate, n_fft, num_bands=most, **options)
    assert len(ranges) == num_bands
    assert_tiles(ranges, n_fft)


@pytest.mark.parametrize(("schema", "count"), PAPER_COUNTS.items())
def test_band_counts_of_the_paper(schema, count):
    assert len(bands(schema, 44100, 2048)) == count
    assert merged_bands(schema, 44100, 2048) == 0


def test_v7_edges_by_hand():
    # With bins of 10 Hz every edge of the schema falls on a bin's centre, which is in the band
    # above: 100 Hz is bin 10.
    sample_rate, n_fft = 44100, 4410
    first_bins = [first for first, _ in bands("v7", sample_rate, n_fft)]
    assert first_bins == [
        *range(0, 100, 10),
        *range(100, 400, 25),
        *range(400, 800, 50),
        *range(800, 1600, 100),
        *(1600, 1800, 2000),
    ]
    # With bins of 21.5 Hz the first bin at or above 1 kHz is 47 (1012 Hz), above 20 kHz 929.
    ranges = bands("v7", 44100, 2048)
    assert ranges[0] == (0, 5)
    assert ranges[10] == (47, 59)
    assert ranges[-1] == (929, 1025)


def test_one_band_from_16_to_20_khz():
    assert bands("v3", 44100, 4410)[-2:] == [(1600, 2000), (2000, 2206)]


def test_a_short_remainder_joins_the_band_below():
    def first_bins(splits, sample_rate=4000):
        # Bins of 10 Hz.
        return [
            first for first, _ in bands("custom", sample_rate, sample_rate // 10, splits=splits)
        ]

    # Below an edge: 900 - 1000 Hz is a third of a band, 800 - 1000 Hz half of one.
    assert first_bins([(1000, 300)]) == [0, 30, 60, 100]
    assert first_bins([(1000, 400)]) == [0, 40, 80, 100]
    # Below Nyquist, inside a split and above the last edge.
    assert first_bins([(1000, 400)], sample_rate=1800) == [0, 40]
    assert first_bins([(1000, 400)], sample_rate=2200) == [0, 40, 80]
    assert first_bins([(400, 200), (1200, 400)], sample_rate=1000) == [0, 20]


def test_cut_at_nyquist():
    ranges = bands("v7", 16000, 1600)
    assert len(ranges) == 10 + 12 + 8
    assert ranges[-1] == (750, 801)
    assert merged_bands("v7", 16000, 1600) == 0


def test_bands_without_a_bin_merge_upwards_and_are_counted():
    # Bins of 200 Hz: of the ten bands of 100 Hz below 1 kHz every second holds a bin.
    ranges = bands("v7", 44000, 220)
    assert ranges[:6] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 7)]
    assert merged_bands("v7", 44000, 220) == 5
    assert len(ranges) == 41 - 5


def test_notes_lie_inside_generic_bands():
    sample_rate, n_fft = 44100, 2**17
    ranges = bands("generic", sample_rate, n_fft, num_bands=121)
    note_bands = []
    for semitone in range(-53, 66):
        note_hz = 440 * 2 ** (semitone / 12)
        note_bin = note_hz * n_fft / sample_rate
        band = next(i for i, (first, end) in enumerate(ranges) if first <= note_bin < end)
        first, end = ranges[band]
        note_bands.append(band)
        # The centre of its band: a quarter-tone to either edge, but for the rounding to bins.
        assert math.isclose(first, note_bin * 2 ** (-1 / 24), abs_tol=1.001)
        assert math.isclose(end, note_bin * 2 ** (1 / 24), abs_tol=1.001)
    assert note_bands == list(range(1, 120))


@pytest.mark.parametrize("num_bands", [24, 41, 60])
def test_thinned_generic_bands_keep_notes_off_their_edges_and_are_even(num_bands):
    sample_rate, n_fft = 44100, 2**16
    inner = bands("generic", sample_rate, n_fft, num_bands=num_bands)[1:]
    edges_hz = [first * sample_rate / n_fft for first, _ in inner]
    steps = [24 * math.log2(hz / 440) for hz in edges_hz if hz > 200]
    assert all(abs(step - round(step)) < 0.1 and round(step) % 2 == 1 for step in steps)
    even = 24 * math.log2(1000) / num_bands
    widths = [b - a for a, b in itertools.pairwise(steps)]
    assert all(abs(width - even) < 2.2 for width in widths)


def test_generic_says_what_is_possible():
    with pytest.raises(BadInput, match="it makes 1 to 9; "):
        bands("generic", 44100, 16)


@pytest.mark.parametrize(
    ("schema", "options", "message"),
    [
        ("v8", {}, "unknown: use one of v1"),
        ("custom", {}, "needs splits"),
        ("custom", {"splits": [(1000, 100), (900, 100)]}, "rising"),
        ("custom", {"splits": [(math.nan, 100)]}, "rising"),
        ("custom", {"splits": [(1000, 0)]}, "width"),
        ("custom", {"splits": [(1000, 100), (2000, 1500)]}, "width"),
        ("custom", {"splits": [(1000, math.nan)]}, "width"),
        ("generic", {"divisions": 7}, "even"),
        ("generic", {"num_bands": 0}, "num_bands"),
    ],
)
def test_impossible_schemas_are_refused(schema, options, message):
    with pytest.raises(BadInput, match=message):
        bands(schema, 44100, 2048, **options)


def test_illegal_stft_is_refused():
    with pytest.raises(BadInput, match="n_fft"):
        bands("v7", 44100, 2047)
    with pytest.raises(BadInput, match="sample_rate"):
        bands("v7", 0, 2048)


def test_model_bands_uses_the_configuration():
    stft = StftConfig(sample_rate=22050, n_fft=1024)
    assert model_bands(stft, ModelConfig(band_schema="bass")) == bands("bass", 22050, 1024)
    generic = ModelConfig(band_schema="generic", divisions=12, num_bands=20)
    assert model_bands(stft, generic) == bands("generic", 22050, 1024, divisions=12, num_bands=20)
    splits = ((1000.0, 250.0),)
    custom = ModelConfig(band_schema="custom", splits=splits)
    assert model_bands(stft, custom) == bands("custom", 22050, 1024, splits=splits)
