"""Whole songs: a mask of ones gives the song back, at any length; memory does not grow."""

import pytest
import torch
from torch import Tensor

from bsrnn_core.config import BsrnnConfig, ModelConfig, StftConfig
from bsrnn_core.errors import BadInput
from bsrnn_core.model import BSRNN
from bsrnn_core.separation import separate, separate_blocks

RATE = 8000
CONFIG = BsrnnConfig(
    stft=StftConfig(sample_rate=RATE, n_fft=64, hop_samples=20),
    model=ModelConfig(
        band_schema="generic", num_bands=4, feature_dim=4, num_blstm_layers=1, mlp_dim=8
    ),
    stems=("vocals", "drums"),
    crop_seconds=0.05,
)
WINDOW = 400


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
    estimates = separate(one_mask, mixture, RATE, overlap=overlap)
    assert list(estimates) == ["vocals", "drums"]
    for estimate in estimates.values():
        assert estimate.shape == mixture.shape
        assert (estimate - mixture).abs().max() < 1e-5


@pytest.mark.parametrize("sample_rate", [4000, 11025, 44100])
@pytest.mark.parametrize("num_samples", [1, 2, 1000, 6001])
def test_other_sample_rates_keep_the_length(one_mask, sample_rate, num_samples):
    time = torch.arange(num_samples) / sample_rate
    mixture = torch.sin(2 * torch.pi * torch.tensor([[200.0], [310.0]]) * time)
    estimate = separate(one_mask, mixture, sample_rate)["vocals"]
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
    for block in separate_blocks(model, song, 10_000, RATE, overlap=overlap, batch_size=2):
        written += block.shape[-1]
        assert block.shape[:2] == (2, 2)
        assert block.shape[-1] <= WINDOW
        # Read ahead of what is given out: no more than a batch of windows.
        assert max(first + count for first, count in song.reads) <= written + 2 * WINDOW
    assert written == 10_000
    for first, count in song.reads:
        assert count <= WINDOW
        assert first >= reached - WINDOW
        reached = max(reached, first + count)
    assert reached == 10_000


def test_blocks_are_what_separate_gives(model):
    mixture = noise(2, 2222)
    whole = torch.stack(list(separate(model, mixture, RATE).values()))
    blocks = list(separate_blocks(model, Reader(mixture), 2222, RATE))
    assert len(blocks) > 5
    torch.testing.assert_close(torch.cat(blocks, dim=-1), whole, rtol=0, atol=0)


def test_the_size_of_a_batch_does_not_matter(model):
    mixture = noise(1, 2222)
    one, many = (separate(model, mixture, RATE, batch_size=size)["drums"] for size in (1, 7))
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


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 1.5])
def test_refuses_an_overlap_that_cannot_be(one_mask, overlap):
    with pytest.raises(BadInput, match="overlap"):
        separate(one_mask, noise(1, 100), RATE, overlap=overlap)


@pytest.mark.parametrize("shape", [(100,), (1, 2, 100), (2, 0), (0, 100)])
def test_refuses_what_is_no_song(one_mask, shape):
    with pytest.raises(BadInput, match=r"\[channels, samples\]"):
        separate(one_mask, torch.zeros(shape), RATE)


def test_refuses_a_song_without_samples(one_mask):
    with pytest.raises(BadInput, match="no sample"):
        list(separate_blocks(one_mask, Reader(torch.zeros(1, 0)), 0, RATE))
