"""The paper's third module: from the features of each band, one complex mask per stem.

Symbols: see band_split.py. Per stem and band: norm -> fully connected (tanh) -> fully connected to
4 w values -> gated linear unit -> the real and imaginary parts of the mask over the band's w bins.
All stems' heads are computed together, and all bands of equal width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bsrnn_core.band_split import BandGroups, grouped_linear


class MaskEstimation(nn.Module):
    """Features [B, K, T, N] -> masks [B, S, F, T, 2]."""

    bin_order: Tensor

    def __init__(
        self,
        bands: Sequence[tuple[int, int]],
        num_stems: int,
        feature_dim: int,
        mlp_dim: int,
        reduce_size: bool,
    ) -> None:
        super().__init__()
        self.groups = BandGroups(bands)
        self.register_buffer("bin_order", self.groups.bin_order, persistent=False)
        # The bands' positions, group after group: the inverse of the way back.
        order = self.groups.band_order.argsort()
        for index, members in enumerate(order.split(self.groups.counts)):
            self.register_buffer(f"bands_{index}", members, persistent=False)
        self.hidden_weights, self.hidden_biases = nn.ParameterList(), nn.ParameterList()
        self.output_weights, self.output_biases = nn.ParameterList(), nn.ParameterList()
        for width, count in zip(self.groups.widths, self.groups.counts, strict=True):
            hidden = 3 * (max(self.groups.widths) - width + 1) if reduce_size else mlp_dim
            weight, bias = grouped_linear((num_stems, count, feature_dim, hidden))
            self.hidden_weights.append(weight)
            self.hidden_biases.append(bias)
            weight, bias = grouped_linear((num_stems, count, hidden, 4 * width))
            self.output_weights.append(weight)
            self.output_biases.append(bias)

    def forward(self, features: Float[Tensor, "B K T N"]) -> Float[Tensor, "B S F T 2"]:
        """Masks for every stem, bin and frame, in the order of the bins."""
        batch, _, frames, feature_dim = features.shape
        normed = nn.functional.layer_norm(features, (frames, feature_dim))
        masks = []
        for index in range(len(self.groups.widths)):
            # [B, 1, k, T, N] @ [S, k, N, h]
            members = normed.index_select(1, self.get_buffer(f"bands_{index}")).unsqueeze(1)
            hidden = members @ self.hidden_weights[index] + self.hidden_biases[index]
            output = torch.tanh(hidden) @ self.output_weights[index] + self.output_biases[index]
            mask = nn.functional.glu(output, dim=-1)  # [B, S, k, T, 2 w]
            mask = mask.unflatten(-1, (-1, 2)).transpose(3, 4)
            masks.append(mask.reshape(batch, mask.shape[1], -1, frames, 2))
        return torch.cat(masks, dim=2).index_select(2, self.bin_order)
