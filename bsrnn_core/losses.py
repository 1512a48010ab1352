"""The training loss: L1 of the real part, of the imaginary part and of the waveform."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from bsrnn_core.config import StftConfig
from bsrnn_core.normalization import STD_FLOOR
from bsrnn_core.stft import istft


def separation_loss(
    mixture: Complex[Tensor, "B C F T"],
    references: Complex[Tensor, "B S C F T"],
    estimates: Complex[Tensor, "B S C F T"],
    config: StftConfig,
) -> Float[Tensor, "S"]:
    """The loss of each stem: the paper's three L1 terms, with loudness taken out.

    Each term is a mean over elements, in units of the mixture's own std (per item) in that domain,
    so that the terms weigh alike and a quiet example counts as much as a loud one.
    """
    error = references - estimates
    parts = torch.view_as_real(mixture)
    spectrum_std = parts.std(dim=(1, 2, 3, 4), correction=0).clamp_min(STD_FLOOR)
    spectrum = torch.view_as_real(error).abs().sum(-1).mean(dim=(2, 3, 4))

    waveform_std = istft(mixture, config).std(dim=(1, 2), correction=0).clamp_min(STD_FLOOR)
    waveform = istft(error, config).abs().mean(dim=(2, 3))
    return (spectrum / spectrum_std[:, None] + waveform / waveform_std[:, None]).mean(0)
