"""The ideal ratio mask: it sums to the mixture, and knows stems that do not meet in frequency."""

import math

import torch

from bsrnn_core.config import StftConfig
from bsrnn_core.oracle import ideal_ratio_estimates

STFT = StftConfig(n_fft=512, hop_samples=128)


def test_estimates_sum_to_the_mixture() -> None:
    references = torch.randn(3, 2, 5001, generator=torch.Generator().manual_seed(0))
    mixture = references.sum(0)
    estimates = ideal_ratio_estimates(mixture, references, STFT)
    assert estimates.shape == references.shape
    torch.testing.assert_close(estimates.sum(0), mixture, atol=1e-5, rtol=0)


def test_equal_stems_get_half_each() -> None:
    stem = torch.randn(1, 1, 3000, generator=torch.Generator().manual_seed(1))
    estimates = ideal_ratio_estimates(2 * stem[0], stem.expand(2, 1, 3000), STFT)
    torch.testing.assert_close(estimates, stem.expand(2, 1, 3000), atol=1e-5, rtol=0)


def test_tones_in_different_bins_are_told_apart() -> None:
    seconds = torch.arange(8000) / STFT.sample_rate
    low = torch.sin(2 * math.pi * 900 * seconds)
    high = torch.sin(2 * math.pi * 9000 * seconds)
    references = torch.stack([low, high])[:, None]
    estimates = ideal_ratio_estimates(references.sum(0), references, STFT)
    middle = slice(1000, 7000)  # the ends hold the clicks of the tones' starts
    error = (estimates - references)[..., middle].square().mean()
    assert error < 1e-4 * references.square().mean()


def test_silence_stays_silence() -> None:
    estimates = ideal_ratio_estimates(torch.zeros(2, 1), torch.zeros(4, 2, 1), STFT)
    assert torch.equal(estimates, torch.zeros(4, 2, 1))
