"""STFT: exact inverse at any length, numpy's reflection, torch's own frames, songs from runs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsrnn_core.config import StftConfig
from bsrnn_core.stft import istft, pad_for_frames, reflect_index, reflect_pad, stft, stft_frames

CONFIGS = [
    StftConfig(),
    StftConfig(n_fft=512),
    StftConfig(n_fft=512, hop_samples=101),
    StftConfig(n_fft=256, hop_samples=128),
    StftConfig(n_fft=64, hop_samples=7),
    StftConfig(n_fft=16, hop_samples=1),
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.n_fft}-{c.hop}")


def noise(*shape, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(*shape, generator=random, dtype=dtype) - 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@every_config
@settings(max_examples=25, deadline=None)
@given(num_samples=st.integers(1, 3000), seed=st.integers(0, 1000))
def test_round_trip(config, dtype, tolerance, num_samples, seed):
    samples = noise(2, num_samples, dtype=dtype, seed=seed)
    back = istft(stft(samples, config), config, num_samples)
    assert back.dtype == dtype
    assert back.shape == samples.shape
    assert (back - samples).abs().max() < tolerance


@every_config
@pytest.mark.parametrize("length", ["one", "hop", "hop + 1", "window", "window - 1"])
def test_round_trip_of_lengths_at_the_edges(config, length):
    num_samples = {
        "one": 1,
        "hop": config.hop,
        "hop + 1": config.hop + 1,
        "window": config.n_fft,
        "window - 1": config.n_fft - 1,
    }[length]
    samples = noise(num_samples)
    spectrogram = stft(samples, config)
    assert spectrogram.shape == (config.num_bins, config.num_frames(num_samples))
    assert (istft(spectrogram, config, num_samples) - samples).abs().max() < 1e-10


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 100), st.integers(0, 100))
def test_reflection_is_that_of_numpy(length, left, right):
    samples = np.arange(length)
    expected = np.pad(samples, (left, right), mode="reflect")
    assert reflect_index(torch.arange(-left, length + right), length).tolist() == expected.tolist()
    assert reflect_pad(torch.from_numpy(samples), left, right).tolist() == expected.tolist()


@every_config
def test_agrees_with_torch_where_torch_can(config):
    for extra in (0, 1, config.hop // 2):
        samples = noise(2, 3 * config.n_fft + extra)
        expected = torch.stft(
            samples,
            config.n_fft,
            config.hop,
            window=torch.hann_window(config.n_fft, dtype=torch.float64),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        ours = stft(samples, config)
        # Torch leaves out the frame whose centre lies after the last sample.
        assert ours.shape[-1] - expected.shape[-1] == (samples.shape[-1] % config.hop > 0)
        torch.testing.assert_close(ours[..., : expected.shape[-1]], expected, rtol=0, atol=1e-10)


def test_cosine_on_a_bin_has_half_the_windows_sum_there():
    config = StftConfig(n_fft=64)
    samples = torch.cos(2 * torch.pi * 5 * torch.arange(640, dtype=torch.float64) / 64)
    frame = stft(samples, config)[:, 20].abs()
    expected = torch.zeros(33, dtype=torch.float64)
    # Hann's sum is n_fft / 2; its transform has half of it, negative, in the two bins beside.
    expected[4:7] = torch.tensor([8.0, 16.0, 8.0])
    torch.testing.assert_close(frame, expected, rtol=0, atol=1e-9)


@every_config
def test_song_is_put_together_from_runs_of_frames(config):
    samples = noise(2, 5 * config.n_fft + 3)
    whole = stft(samples, config)
    padded = pad_for_frames(samples, config)
    runs, run_frames = [], 5
    for first in range(0, whole.shape[-1], run_frames):
        frames = min(run_frames, whole.shape[-1] - first)
        start = first * config.hop
        run = padded[..., start : start + (frames - 1) * config.hop + config.n_fft]
        runs.append(stft_frames(run, config))
    together = torch.cat(runs, dim=-1)
    torch.testing.assert_close(together, whole, rtol=0, atol=1e-10)
    assert (istft(together, config, samples.shape[-1]) - samples).abs().max() < 1e-10


@every_config
def test_run_of_frames_gives_the_samples_between_its_outer_centres(config):
    samples = noise(5 * config.n_fft)
    run = stft(samples, config)[..., 3:8]
    expected = samples[3 * config.hop : 7 * config.hop]
    torch.testing.assert_close(istft(run, config), expected, rtol=0, atol=1e-10)
    assert istft(run[..., :1], config).shape == (1,)


def test_leading_axes_are_items_of_their_own():
    config = StftConfig(n_fft=64)
    samples = noise(2, 3, 2, 500)
    spectrogram = stft(samples, config)
    assert spectrogram.shape == (2, 3, 2, 33, config.num_frames(500))
    torch.testing.assert_close(spectrogram[1, 2, 0], stft(samples[1, 2, 0], config))
    assert istft(spectrogram, config, 500).shape == samples.shape


def test_inverse_refuses_samples_beyond_the_frames():
    config = StftConfig(n_fft=64)
    with pytest.raises(AssertionError, match="do not reach"):
        istft(stft(noise(100), config), config, 1000)
