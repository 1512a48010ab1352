"""Levels: one gain per track, one complex mean and one real std per chunk; and back.

A gain applied to the mixture and to all stems alike keeps the stems summing to the mixture. The
network sees the standardised mixture only, and its mask multiplies the mixture itself, so nothing
has to be undone on its output.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

STD_FLOOR = 1e-8
"""Smallest std: a silent chunk stays zero instead of becoming nan."""


def track_gain(mixture: Float[Tensor, "C N"], target_rms: float, peak: float) -> float:
    """The factor that brings a track to ``target_rms``, lowered where a sample would pass ``peak``.

    The root mean square runs over all channels and samples; a silent track keeps its level (1).
    """
    norm = torch.linalg.vector_norm(mixture, dtype=torch.float64).item()
    rms = norm / mixture.numel() ** 0.5
    if rms == 0:
        return 1.0
    return min(target_rms / rms, peak / mixture.abs().max().item())


def spectrum_statistics(
    mixture: Complex[Tensor, "*batch C F T"],
) -> tuple[Complex[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Complex mean and real std of a spectrogram over its channels, bins and frames.

    The std is that of the complex values, sqrt(E|x - E x|^2), not below STD_FLOOR.
    """
    mean = mixture.mean(dim=(-3, -2, -1))
    deviation = torch.view_as_real(mixture - mean[..., None, None, None])
    variance = deviation.square().sum(-1).mean(dim=(-3, -2, -1))
    return mean, variance.sqrt().clamp_min(STD_FLOOR)


def standardise(
    spectrogram: Complex[Tensor, "*batch C F T"],
    mean: Complex[Tensor, "*batch"],
    std: Float[Tensor, "*batch"],
) -> Complex[Tensor, "*batch C F T"]:
    """(x - mean) / std."""
    return (spectrogram - mean[..., None, None, None]) / std[..., None, None, None]


def destandardise(
    spectrogram: Complex[Tensor, "*batch C F T"],
    mean: Complex[Tensor, "*batch"],
    std: Float[Tensor, "*batch"],
) -> Complex[Tensor, "*batch C F T"]:
    """The inverse of ``standardise``: x * std + mean."""
    return spectrogram * std[..., None, None, None] + mean[..., None, None, None]
