"""The ceiling of masking: what a mask that knows the stems would score."""

import torch
from jaxtyping import Float
from torch import Tensor

from bsrnn_core.config import StftConfig
from bsrnn_core.stft import istft, stft


def ideal_ratio_estimates(
    mixture: Float[Tensor, "C N"], references: Float[Tensor, "S C N"], config: StftConfig
) -> Float[Tensor, "S C N"]:
    """Estimates by the ideal ratio mask: the mixture's STFT times |S_i| / sum_j |S_j|.

    This is IRM1 of the SiSEC 2018 oracles (Stoter, Liutkus and Ito, arXiv 1804.06267): magnitudes,
    not powers. ``references`` must be ALL stems of the track, for they share each bin out between
    them; the estimates then sum to the mixture wherever any stem sounds. A bin in which no stem
    sounds goes to none. Of ``config`` only n_fft and hop count, whatever the track's sample rate.
    """
    assert references.shape[1:] == mixture.shape, (references.shape, mixture.shape)
    estimates = torch.empty_like(references)
    # A channel at a time: the spectrograms of all stems of a long song are gigabytes.
    for channel, samples in enumerate(mixture):
        spectrogram = stft(samples, config)
        magnitudes = torch.stack([stft(stem[channel], config).abs() for stem in references])
        total = magnitudes.sum(0).clamp_min(torch.finfo(magnitudes.dtype).tiny)
        for stem, magnitude in enumerate(magnitudes):
            masked = spectrogram * (magnitude / total)
            estimates[stem, channel] = istft(masked, config, samples.shape[-1])
    return estimates
