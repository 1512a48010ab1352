"""The paper's first module: each band of the spectrogram becomes N features.

Symbols, here and in the two modules that follow: B items (each channel is one), F bins cut into
K bands, T frames, N features, S stems. A band of w bins is normalised over its frames and its
2 w real and imaginary parts, then mapped to N features by a fully connected layer of its own.

Bands of equal width are computed together, in one batched product: that is as fast as a loop over
bands on a CPU and starts several times fewer kernels on a GPU (benchmarks/model_step.py). The
norms in front of the bands' layers have no gain and offset of their own: the layer's do the same.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class BandGroups:
    """Bands of equal width, put together; and the way back to the order of bands and of bins."""

    def __init__(self, bands: Sequence[tuple[int, int]]) -> None:
        by_width: dict[int, list[int]] = {}
        for index, (first, end) in enumerate(bands):
            by_width.setdefault(end - first, []).append(index)
        self.widths = list(by_width)
        """Bins of a band (w), for each group."""
        self.counts = [len(members) for members in by_width.values()]
        """Bands (k), for each group."""
        grouped = [index for members in by_width.values() for index in members]
        self.band_order = torch.tensor(grouped).argsort()
        """Gathers bands back from the groups' order."""
        self.group_bins: list[Int[Tensor, "k*w"]] = [
            torch.cat([torch.arange(*bands[index]) for index in members])
            for members in by_width.values()
        ]
        """The bins of each group's bands, one band after the other."""
        self.bin_order = torch.cat(self.group_bins).argsort()
        """Gathers bins back from the groups' order."""


def grouped_linear(shape: Sequence[int]) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights [*, fan_in, fan_out] and biases [*, 1, fan_out], drawn as nn.Linear draws its own."""
    *batch, fan_in, fan_out = shape
    bound = 1 / math.sqrt(fan_in)
    weight = nn.Parameter(torch.empty(*batch, fan_in, fan_out).uniform_(-bound, bound))
    bias = nn.Parameter(torch.empty(*batch, 1, fan_out).uniform_(-bound, bound))
    return weight, bias


class BandSplit(nn.Module):
    """Spectrogram [B, F, T, 2] -> features [B, K, T, N]."""

    band_order: Tensor

    def __init__(self, bands: Sequence[tuple[int, int]], feature_dim: int) -> None:
        super().__init__()
        self.groups = BandGroups(bands)
        self.register_buffer("band_order", self.groups.band_order, persistent=False)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for index, (width, count) in enumerate(
            zip(self.groups.widths, self.groups.counts, strict=True)
        ):
            weight, bias = grouped_linear((count, 2 * width, feature_dim))
            self.weights.append(weight)
            self.biases.append(bias)
            self.register_buffer(f"bins_{index}", self.groups.group_bins[index], persistent=False)

    def forward(self, spectrogram: Float[Tensor, "B F T 2"]) -> Float[Tensor, "B K T N"]:
        """Features of every band and frame, from a standardised spectrogram."""
        batch, _, frames, _ = spectrogram.shape
        features = []
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            count, fan_in, _ = weight.shape
            bins = spectrogram.index_select(1, self.get_buffer(f"bins_{index}"))
            # [B, k*w, T, 2] -> [B, k, T, w*2]
            bands = bins.reshape(batch, count, -1, frames, 2).transpose(2, 3)
            bands = bands.reshape(batch, count, frames, fan_in)
            normed = nn.functional.layer_norm(bands, (frames, fan_in))
            features.append(normed @ weight + bias)
        return torch.cat(features, dim=1).index_select(1, self.band_order)
