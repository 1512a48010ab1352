"""Levels: gains by hand, stems that still sum, inverses, and what silence does."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsrnn_core.config import StftConfig
from bsrnn_core.normalization import (
    STD_FLOOR,
    destandardise,
    spectrum_statistics,
    standardise,
    track_gain,
)
from bsrnn_core.stft import stft

CONFIG = StftConfig(n_fft=64)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gain_brings_the_rms_to_its_target():
    mixture = torch.tensor([[0.3, -0.3], [0.4, -0.4]])
    # rms = sqrt((2 * 0.09 + 2 * 0.16) / 4)
    assert track_gain(mixture, target_rms=0.1, peak=1.0) == pytest.approx(0.1 / math.sqrt(0.125))


def test_gain_is_held_below_the_peak():
    mixture = torch.tensor([[0.0, -0.5, 0.0, 0.0]])
    # The rms of 0.25 asks for a gain of 4, the peak allows 2.
    assert track_gain(mixture, target_rms=1.0, peak=1.0) == pytest.approx(2.0)


def test_gain_of_silence_and_of_antiphase():
    assert track_gain(torch.zeros(2, 100), 0.1, 1.0) == 1.0
    left = noise(1, 100)
    antiphase = torch.cat([left, -left])
    rms = left.square().mean().sqrt().item()
    assert track_gain(antiphase, 0.1, 10.0) == pytest.approx(0.1 / rms)


def test_stems_still_sum_to_the_mixture_after_the_gain():
    references = noise(4, 2, 1000)
    mixture = references.sum(0)
    gain = track_gain(mixture, 0.1, 1.0)
    torch.testing.assert_close((references * gain).sum(0), mixture * gain)
    assert (mixture * gain).square().mean().sqrt().item() <= 0.1 + 1e-12
    assert (mixture * gain).abs().max().item() <= 1 + 1e-12


def test_statistics_by_hand():
    # Two channels, one bin, two frames: real parts 1 3 1 3, imaginary parts 0 0 4 4.
    mixture = torch.tensor([[[1 + 0j, 3 + 0j]], [[1 + 4j, 3 + 4j]]])
    mean, std = spectrum_statistics(mixture)
    assert mean.item() == 2 + 2j
    assert std.item() == pytest.approx(math.sqrt(1 + 4))


def test_statistics_of_items_are_their_own():
    mixtures = torch.stack([stft(noise(2, 500, seed=s) * 10**s, CONFIG) for s in range(3)])
    means, stds = spectrum_statistics(mixtures)
    assert means.shape == stds.shape == (3,)
    for index in range(3):
        mean, std = spectrum_statistics(mixtures[index])
        torch.testing.assert_close(means[index], mean)
        torch.testing.assert_close(stds[index], std)


def test_standardised_has_mean_0_and_std_1():
    mixture = stft(noise(2, 2, 1000) + 0.5, CONFIG)
    mean, std = spectrum_statistics(standardise(mixture, *spectrum_statistics(mixture)))
    torch.testing.assert_close(mean, torch.zeros(2, dtype=torch.complex128))
    torch.testing.assert_close(std, torch.ones(2, dtype=torch.float64))


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 1000),
    st.floats(-6, 4).map(lambda exponent: 10.0**exponent),
    st.sampled_from([1, 2]),
)
def test_destandardise_inverts_standardise(seed, level, channels):
    mixture = level * stft(noise(3, channels, 300, seed=seed), CONFIG)
    statistics = spectrum_statistics(mixture)
    back = destandardise(standardise(mixture, *statistics), *statistics)
    torch.testing.assert_close(back, mixture, rtol=0, atol=1e-12 * level)


def test_silence_stays_zero():
    silence = torch.zeros(2, 33, 5, dtype=torch.complex64)
    mean, std = spectrum_statistics(silence)
    assert (mean.item(), std.item()) == (0, pytest.approx(STD_FLOOR))
    standardised = standardise(silence, mean, std)
    assert torch.equal(standardised, silence)
    assert torch.equal(destandardise(standardised, mean, std), silence)


def test_antiphase_and_a_barely_audible_constant_stay_finite():
    left = noise(1, 500).float()
    for samples in (torch.cat([left, -left]), torch.full((2, 500), 1e-30)):
        spectrogram = stft(samples, CONFIG)
        mean, std = spectrum_statistics(spectrogram)
        standardised = standardise(spectrogram, mean, std)
        assert torch.view_as_real(standardised).isfinite().all()
        torch.testing.assert_close(destandardise(standardised, mean, std), spectrogram)
    mean, std = spectrum_statistics(stft(torch.cat([left, -left]), CONFIG))
    assert abs(mean.item()) < 1e-6
    assert std.item() > 1
