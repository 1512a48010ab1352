"""The paper's second module: residual BLSTMs, over the frames of each band, then over the bands.

Symbols: see band_split.py. The LSTMs are 85 % of a step on a CPU, so what matters is the layout
that feeds them: features stay last and contiguous, and one transpose turns frames and bands about.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlstm(nn.Module):
    """x + FC(BLSTM(norm(x))) along the third axis of [B, R, L, N]; R rows share the weights."""

    def __init__(self, feature_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(feature_dim))
        self.offset = nn.Parameter(torch.zeros(feature_dim))
        self.lstm = nn.LSTM(feature_dim, hidden_dim, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden_dim, feature_dim)

    def forward(self, features: Float[Tensor, "B R L N"]) -> Float[Tensor, "B R L N"]:
        """The norm is GroupNorm with one group: over the features and the whole sequence."""
        normed = nn.functional.layer_norm(features, features.shape[-2:])
        normed = torch.addcmul(self.offset, normed, self.gain)
        output, _ = self.lstm(normed.flatten(0, 1))
        return features + self.fc(output).view(features.shape)


class BandSequence(nn.Module):
    """One band-and-sequence module: [B, K, T, N] -> [B, K, T, N]."""

    def __init__(self, feature_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.over_time = ResidualBlstm(feature_dim, hidden_dim)
        self.over_bands = ResidualBlstm(feature_dim, hidden_dim)

    def forward(self, features: Float[Tensor, "B K T N"]) -> Float[Tensor, "B K T N"]:
        """A BLSTM along the frames of each band, then one along the bands of each frame."""
        features = self.over_time(features)
        return self.over_bands(features.transpose(1, 2)).transpose(1, 2)
