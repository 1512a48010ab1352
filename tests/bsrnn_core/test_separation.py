"""Whole songs: a mask of ones gives the song back, at any length; memory does not grow."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bsrnn_core.audio_files import write_audio
from bsrnn_core.config import BsrnnConfig, ModelConfig, SeparationConfig, StftConfig
from bsrnn_core.errors import BadInput
from bsrnn_core.model import BSRNN
from bsrnn_core.precision import has_bf16
from bsrnn_core.separation import _window_starts, separate, separate_blocks
from bsrnn_core.stft import istft, stft

RATE = 8000
CONFIG = BsrnnConfig(
    stft=StftConfig(sample_rate=RATE, n_fft=64, hop_samples=20),
    model=ModelConfig(
        band_schema="generic", num_bands=4, feature_dim=4, num_blstm_layers=1, mlp_dim=8
    ),
    stems=("vocals", "drums"),
)
WINDOW = 400
WINDOWS = SeparationConfig(window_seconds=WINDOW / RATE, overlap=0.5, batch_size=2)


class OneMask(BSRNN):
    """Every stem's mask is 1."""

    def masks(self, mixture: Tensor) -> Tensor:
        return torch.ones_like(mixture)[:, None].expand(-1, len(self.stems), -1, -1, -1)


@pytest.fixture(scope="module")
def one_mask() -> BSRNN:
    return OneMask(CONFIG)


@pytest.fixture(scope="module")
def model() -> BSRNN:
    torch.manual_seed(0)
    return BSRNN(CONFIG)


def noise(channels: int, num_samples: int) -> Tensor:
    random = torch.Generator().manual_seed(num_samples)
    return 2 * torch.rand(channels, num_samples, generator=random) - 1


class Reader:
    """A song on disk that notes what is read of it."""

    def __init__(self, samples: Tensor) -> None:
        self.samples = samples
        self.reads: list[tuple[int, int]] = []

    def __call__(self, first: int, count: int) -> Tensor:
        assert 0 <= first < first + count <= self.samples.shape[-1]
        self.reads.append((first, count))
        return self.samples[:, first : first + count]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("num_samples", [1, 2, 100, 399, 400, 401, 1777])
def test_masks_of_one_give_the_song(one_mask, num_samples, channels, overlap):
    mixture = noise(channels, num_samples)
    estimates = separate(one_mask, mixture, RATE, replace(WINDOWS, overlap=overlap))
    assert list(estimates) == ["vocals", "drums"]
    for estimate in estimates.values():
        assert estimate.shape == mixture.shape
        assert (estimate - mixture).abs().max() < 1e-5


@pytest.mark.parametrize("sample_rate", [4000, 11025, 44100])
@pytest.mark.parametrize("num_samples", [1, 2, 1000, 6001])
def test_other_sample_rates_keep_the_length(one_mask, sample_rate, num_samples):
    time = torch.arange(num_samples) / sample_rate
    mixture = torch.sin(2 * torch.pi * torch.tensor([[200.0], [310.0]]) * time)
    estimate = separate(one_mask, mixture, sample_rate, WINDOWS)["vocals"]
    assert estimate.shape == mixture.shape
    assert estimate.dtype == torch.float32
    assert estimate.isfinite().all()
    if num_samples >= 1000:
        assert (estimate - mixture).square().mean().sqrt() < 0.005
        assert (estimate - mixture)[:, 50:-50].abs().max() < 0.01


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_reads_a_window_at_a_time_and_never_far_back(model, overlap):
    song = Reader(noise(2, 10_000))
    reached = written = 0
    for block in separate_blocks(model, song, 10_000, RATE, replace(WINDOWS, overlap=overlap)):
        written += block.shape[-1]
        assert block.shape[:2] == (2, 2)
        assert block.shape[-1] <= WINDOW
        # Read ahead of what is given out: no more than a batch of windows and the one before.
        assert max(first + count for first, count in song.reads) <= written + 3 * WINDOW
    assert written == 10_000
    for first, count in song.reads:
        assert count == WINDOW
        assert first >= reached - WINDOW
        reached = max(reached, first + count)
    assert reached == 10_000


@given(st.integers(1, 5000), st.integers(1, 5000), st.floats(0, 0.99))
def test_windows_cover_the_song_and_overlap_as_asked(num_samples, length, overlap):
    length = min(length, num_samples)
    starts = _window_starts(num_samples, length, overlap)
    assert (starts[0], starts[-1]) == (0, num_samples - length)
    steps = [after - before for before, after in itertools.pairwise(starts)]
    assert all(0 < step <= max(1, round(length * (1 - overlap))) for step in steps)
    assert not steps or max(steps) - min(steps) <= 1


def test_a_song_no_longer_than_a_window_is_computed_at_once(model):
    mixture = noise(2, WINDOW)
    spectrogram = model(stft(mixture[None], CONFIG.stft))
    at_once = istft(spectrogram, CONFIG.stft, WINDOW)[0].detach()
    estimates = torch.stack(list(separate(model, mixture, RATE, WINDOWS).values()))
    torch.testing.assert_close(estimates, at_once, rtol=1e-5, atol=1e-6)


def test_two_windows_meet_under_their_weights(model):
    """Away from the overlap each window's own estimate; inside it, Hann-weighted means."""
    mixture, length = noise(1, 600), WINDOW
    parts = [
        separate(model, mixture[:, first : first + length], RATE, WINDOWS)["drums"]
        for first in (0, 200)
    ]
    position = (torch.arange(length) + 0.5) / length
    hann = 0.5 - 0.5 * torch.cos(2 * torch.pi * position)
    middle = parts[0][:, 200:] * hann[200:] + parts[1][:, :200] * hann[:200]
    middle = middle / (hann[200:] + hann[:200])
    expected = torch.cat([parts[0][:, :200], middle, parts[1][:, 200:]], dim=1)
    estimate = separate(model, mixture, RATE, WINDOWS)["drums"]
    torch.testing.assert_close(estimate, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("first", "count"), [(0, 50), (777, 901), (2000, 222), (0, 2222)])
@pytest.mark.parametrize("sample_rate", [RATE, 11025])
def test_an_excerpt_is_what_the_whole_song_gives_there(model, sample_rate, first, count):
    mixture, one = noise(2, 2222), replace(WINDOWS, batch_size=1)
    whole = torch.stack(list(separate(model, mixture, sample_rate, one).values()))
    song = Reader(mixture)
    runs = separate_blocks(model, song, 2222, sample_rate, one, first=first, count=count)
    excerpt = torch.cat(list(runs), dim=-1)
    torch.testing.assert_close(excerpt, whole[..., first : first + count], rtol=0, atol=0)
    if count < 100:
        assert len(song.reads) == 1


def test_a_file_is_separated_as_its_samples_are(model, tmp_path):
    song, mixture = tmp_path / "song.wav", noise(2, 1000)
    write_audio(song, mixture, 11025, subtype="FLOAT")
    from_file = separate(model, song)
    from_samples = separate(model, mixture, 11025)
    for stem in CONFIG.stems:
        assert torch.equal(from_file[stem], from_samples[stem])
    assert not torch.equal(separate(model, mixture)["drums"], from_samples["drums"])
    with pytest.raises(BadInput, match="11025 Hz, not 8000"):
        separate(model, song, 8000)


def test_bf16_is_close_and_not_the_same_or_refused(model):
    mixture = noise(1, 1000)
    if not has_bf16(torch.device("cpu")):
        with pytest.raises(BadInput, match="this CPU"):
            separate(model, mixture, RATE, replace(WINDOWS, precision="bf16"))
        return
    exact, coarse = (
        separate(model, mixture, RATE, replace(WINDOWS, precision=precision))["drums"]
        for precision in ("float32", "bf16")
    )
    assert 0 < (exact - coarse).norm() < 0.05 * exact.norm()


def test_blocks_are_what_separate_gives(model):
    mixture = noise(2, 2222)
    whole = torch.stack(list(separate(model, mixture, RATE, WINDOWS).values()))
    blocks = list(separate_blocks(model, Reader(mixture), 2222, RATE, WINDOWS))
    assert len(blocks) > 5
    torch.testing.assert_close(torch.cat(blocks, dim=-1), whole, rtol=0, atol=0)


def test_the_size_of_a_batch_does_not_matter(model):
    mixture = noise(1, 2222)
    one, many = (
        separate(model, mixture, RATE, replace(WINDOWS, batch_size=size))["drums"]
        for size in (1, 7)
    )
    torch.testing.assert_close(one, many, rtol=0, atol=1e-6)


def test_estimates_go_by_their_stems_names():
    model = BSRNN(CONFIG)
    with torch.no_grad():
        for values in (*model.heads.output_weights, *model.heads.output_biases):
            values[CONFIG.stems.index("drums")] = 0
    estimates = separate(model, noise(1, 1000), RATE)
    assert torch.equal(estimates["drums"], torch.zeros(1, 1000))
    assert estimates["vocals"].abs().max() > 1e-3


def test_other_number_formats_and_silence(one_mask):
    mixture = noise(2, 500)
    estimate = separate(one_mask, mixture.double(), RATE)["drums"]
    torch.testing.assert_close(estimate, mixture, rtol=0, atol=1e-5)
    silence = torch.zeros(2, 500)
    assert torch.equal(separate(one_mask, silence, RATE)["drums"], silence)


def test_estimates_carry_no_graph(model):
    assert not separate(model, noise(1, 500), RATE)["drums"].requires_grad


@pytest.mark.parametrize(
    "wrong",
    [
        *({"overlap": -0.1}, {"overlap": 1.0}, {"overlap": math.nan}, {"batch_size": -1}),
        *({"window_seconds": 0}, {"window_seconds": math.nan}, {"window_seconds": math.inf}),
    ],
)
def test_refuses_windows_that_cannot_be(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        SeparationConfig(**wrong)


@pytest.mark.parametrize("shape", [(100,), (1, 2, 100), (2, 0), (0, 100)])
def test_refuses_what_is_no_song(one_mask, shape):
    with pytest.raises(BadInput, match=r"\[channels, samples\]"):
        separate(one_mask, torch.zeros(shape), RATE)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_samples_that_are_no_numbers(one_mask, value):
    mixture = noise(1, 100)
    mixture[0, 50] = value
    with pytest.raises(BadInput, match="NaN or infinite"):
        separate(one_mask, mixture, RATE)


def test_refuses_a_song_without_samples(one_mask):
    with pytest.raises(BadInput, match="no sample"):
        list(separate_blocks(one_mask, Reader(torch.zeros(1, 0)), 0, RATE))
