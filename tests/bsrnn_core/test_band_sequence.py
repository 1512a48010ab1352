"""The band-and-sequence module equals the paper's layers applied one row at a time."""

import pytest
import torch
from torch import nn

from bsrnn_core.band_sequence import BandSequence, ResidualBlstm

FEATURES, HIDDEN = 4, 5


def plain_row(row, layer):
    """x + FC(BLSTM(GroupNorm(x))) of a single sequence [L, N]."""
    norm = nn.GroupNorm(1, FEATURES)
    with torch.no_grad():
        norm.weight.copy_(layer.gain)
        norm.bias.copy_(layer.offset)
    normed = norm(row.T[None])[0].T
    return row + layer.fc(layer.lstm(normed)[0])


@pytest.fixture
def module():
    torch.manual_seed(0)
    module = BandSequence(FEATURES, HIDDEN)
    with torch.no_grad():
        for layer in (module.over_time, module.over_bands):
            layer.gain.uniform_(0.5, 2)
            layer.offset.uniform_(-1, 1)
    return module


@pytest.mark.parametrize("frames", [1, 6])
def test_equals_row_by_row(module, frames):
    features = torch.randn(2, 3, frames, FEATURES) * 4 - 1
    expected = features.clone()
    for item in range(2):
        for band in range(3):
            expected[item, band] = plain_row(expected[item, band], module.over_time)
        for frame in range(frames):
            expected[item, :, frame] = plain_row(expected[item, :, frame], module.over_bands)
    output = module(features)
    assert output.shape == features.shape
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


def test_lstm_is_bidirectional_with_the_hidden_width_per_direction():
    layer = ResidualBlstm(FEATURES, HIDDEN)
    assert layer.lstm.bidirectional
    assert layer.lstm.hidden_size == HIDDEN
    assert (layer.fc.in_features, layer.fc.out_features) == (2 * HIDDEN, FEATURES)


def test_zeroed_output_layer_leaves_the_features_alone(module):
    for layer in (module.over_time, module.over_bands):
        nn.init.zeros_(layer.fc.weight)
        nn.init.zeros_(layer.fc.bias)
    features = torch.randn(2, 3, 6, FEATURES)
    assert torch.equal(module(features), features)
