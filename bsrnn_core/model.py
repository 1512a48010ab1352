"""BSRNN: a trunk shared by all stems, and one mask head per stem.

The network sees the mixture standardised (normalization.py), each channel as an item of its own;
its masks multiply the mixture itself, so twice as loud in is twice as loud out.

Reference: Luo and Yu, "Music Source Separation with Band-split RNN", arXiv 2209.15174.
"""

import dataclasses
from typing import Self

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from bsrnn_core.band_sequence import BandSequence
from bsrnn_core.band_split import BandSplit
from bsrnn_core.bands import model_bands
from bsrnn_core.config import BsrnnConfig
from bsrnn_core.mask_estimation import MaskEstimation
from bsrnn_core.normalization import spectrum_statistics, standardise


class Trunk(nn.Module):
    """Band split and band-and-sequence modules: spectrogram [B, F, T, 2] -> [B, K, T, N]."""

    def __init__(self, config: BsrnnConfig) -> None:
        super().__init__()
        model = config.model
        self.band_split = BandSplit(model_bands(config.stft, model), model.feature_dim)
        self.sequence = nn.Sequential(
            *(BandSequence(model.feature_dim, model.hidden) for _ in range(model.num_blstm_layers))
        )

    def forward(self, spectrogram: Float[Tensor, "B F T 2"]) -> Float[Tensor, "B K T N"]:
        """Features of every band and frame."""
        return self.sequence(self.band_split(spectrogram))


class BSRNN(nn.Module):
    """Estimates the complex spectrogram of each of ``config.stems`` from that of a mixture."""

    def __init__(self, config: BsrnnConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.heads = _new_heads(config)

    @property
    def stems(self) -> tuple[str, ...]:
        """The stems estimated, in the order of the output's S axis."""
        return self.config.stems

    def forward(self, mixture: Complex[Tensor, "B C F T"]) -> Complex[Tensor, "B S C F T"]:
        """Estimates for any number of channels and frames, at the level of the mixture."""
        return self.masks(mixture) * mixture.unsqueeze(1)

    def masks(self, mixture: Complex[Tensor, "B C F T"]) -> Complex[Tensor, "B S C F T"]:
        """One complex mask per stem and channel."""
        batch, channels = mixture.shape[:2]
        standardised = standardise(mixture, *spectrum_statistics(mixture))
        items = torch.view_as_real(standardised).flatten(0, 1)
        # Without autocast the masks already are float32; under it, complex bf16 does not exist.
        masks = self.heads(self._features(items)).float().contiguous()
        return torch.view_as_complex(masks).unflatten(0, (batch, channels)).transpose(1, 2)

    def _features(self, items: Float[Tensor, "B F T 2"]) -> Float[Tensor, "B K T N"]:
        """The trunk's; without a graph where it is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.trunk_is_frozen):
            return self.trunk(items)

    def graft(self, stems: tuple[str, ...]) -> "BSRNN":
        """A model with this one's trunk (the same parameters) and fresh heads for ``stems``."""
        grafted = BSRNN(dataclasses.replace(self.config, stems=stems))
        grafted.trunk = self.trunk
        return grafted

    @property
    def trunk_is_frozen(self) -> bool:
        """Whether the trunk is left out of the training."""
        return not next(self.trunk.parameters()).requires_grad

    def freeze_trunk(self) -> None:
        """Take the trunk out of the training: no gradients, no graph, evaluation mode."""
        self.trunk.requires_grad_(False).eval()

    def unfreeze_trunk(self) -> None:
        """Let the trunk be trained again, from the next call of ``train`` on."""
        self.trunk.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """As for any module, but a frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self.trunk_is_frozen:
            self.trunk.eval()
        return self


def _new_heads(config: BsrnnConfig) -> MaskEstimation:
    model = config.model
    return MaskEstimation(
        model_bands(config.stft, model),
        len(config.stems),
        model.feature_dim,
        model.mlp_dim,
        model.reduce_size,
    )


def num_parameters(config: BsrnnConfig) -> int:
    """How many a model has, all stems together, known before any memory is taken."""
    model = config.model
    features, hidden = model.feature_dim, model.hidden
    lstms = 2 * 4 * hidden * (features + hidden + 2)
    sequence = 2 * (2 * features + lstms + (2 * hidden + 1) * features)
    split = head = 0
    widths = [end - first for first, end in model_bands(config.stft, model)]
    for width in widths:
        mlp = 3 * (max(widths) - width + 1) if model.reduce_size else model.mlp_dim
        split += (2 * width + 1) * features
        head += (features + 1) * mlp + (mlp + 1) * 4 * width
    return split + model.num_blstm_layers * sequence + len(config.stems) * head
