"""The loss: its three terms by hand, blind to loudness, a number per stem."""

import math

import numpy as np
import pytest
import torch

from bsrnn_core.config import StftConfig
from bsrnn_core.losses import separation_loss
from bsrnn_core.stft import stft

CONFIG = StftConfig(sample_rate=8000, n_fft=32, hop_samples=8)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def example(batch=2, stems=3, channels=2, seed=0):
    """Mixtures, references and estimates as spectrograms of 80 samples."""
    references = noise(batch, stems, channels, 80, seed=seed)
    estimates = references + 0.3 * noise(batch, stems, channels, 80, seed=seed + 1)
    mixture = stft(references.sum(1), CONFIG)
    return mixture, stft(references, CONFIG), stft(estimates, CONFIG)


def test_by_hand():
    # One item, stem and channel. The waveform's term: the error is 0.5 everywhere, the mixture +-1.
    samples = torch.tensor([1.0, -1.0]).repeat(40)[None]
    mixture = stft(samples, CONFIG)
    estimate = stft(samples - 0.5, CONFIG)
    loss = separation_loss(mixture[None], mixture[None, None], estimate[None, None], CONFIG)

    # The window sums to 16. A constant of 0.5 gives 8 in bin 0 and -4 in bin 1, of 17 bins.
    error = 12 / 17
    # The alternating mixture gives 16 in the last bin and -8 beside it, of 2 x 17 real numbers.
    std = math.sqrt((16**2 + 8**2) / 34 - ((16 - 8) / 34) ** 2)
    assert loss.tolist() == pytest.approx([error / std + 0.5], rel=1e-5)


def test_equals_its_definition_in_numpy():
    mixture, references, estimates = example()
    losses = separation_loss(mixture, references, estimates, CONFIG)
    samples = [noise(2, 3, 2, 80), noise(2, 3, 2, 80, seed=1)]
    expected = np.zeros(3)
    for item in range(2):
        spectrum_std = np.std(torch.view_as_real(mixture[item]).numpy())
        waveform_std = np.std(samples[0][item].sum(0).numpy())
        for stem in range(3):
            error = torch.view_as_real((references - estimates)[item, stem]).numpy()
            waveform = 0.3 * samples[1][item, stem].numpy()
            parts = np.abs(error[..., 0]).mean() + np.abs(error[..., 1]).mean()
            expected[stem] += parts / spectrum_std + np.abs(waveform).mean() / waveform_std
    np.testing.assert_allclose(losses.numpy(), expected / 2, rtol=1e-5)


def test_zero_at_the_perfect_estimate_and_nowhere_near():
    mixture, references, estimates = example()
    assert separation_loss(mixture, references, references, CONFIG).tolist() == [0, 0, 0]
    assert (separation_loss(mixture, references, estimates, CONFIG) > 0.1).all()


def test_loudness_does_not_matter():
    parts = example()
    losses = separation_loss(*parts, CONFIG)
    levels = torch.tensor([1e-3, 50.0])
    mixture, references, estimates = (
        part * levels.view(-1, *[1] * (part.ndim - 1)) for part in parts
    )
    louder = separation_loss(mixture, references, estimates, CONFIG)
    torch.testing.assert_close(louder, losses, rtol=1e-4, atol=0)


def test_a_stem_is_judged_by_its_own_estimate():
    mixture, references, estimates = example()
    losses = separation_loss(mixture, references, estimates, CONFIG)
    assert losses.shape == (3,)
    for stem in range(3):
        one = slice(stem, stem + 1)
        alone = separation_loss(mixture, references[:, one], estimates[:, one], CONFIG)
        torch.testing.assert_close(alone, losses[one])


def test_items_weigh_alike():
    mixture, references, estimates = example()
    losses = separation_loss(mixture, references, estimates, CONFIG)
    halves = [
        separation_loss(mixture[one], references[one], estimates[one], CONFIG)
        for one in (slice(0, 1), slice(1, 2))
    ]
    torch.testing.assert_close(losses, (halves[0] + halves[1]) / 2)


def test_silent_mixture_gives_no_nan():
    silence = torch.zeros(1, 2, CONFIG.num_bins, 5, dtype=torch.complex64)
    estimates = silence[:, None].clone().requires_grad_()
    loss = separation_loss(silence, silence[:, None], estimates, CONFIG)
    loss.sum().backward()
    assert loss.item() == 0
    assert estimates.grad is not None
    assert torch.view_as_real(estimates.grad).isfinite().all()
