"""Bands computed in groups equal a plain loop over the bands, written with torch's own layers."""

import math

import pytest
import torch
from torch import nn

from bsrnn_core.band_split import BandGroups, BandSplit, grouped_linear

# Widths 2 3 2 1 3 2: three groups whose members do not lie side by side.
BANDS = [(0, 2), (2, 5), (5, 7), (7, 8), (8, 11), (11, 13)]
NUM_BINS = 13


def place_in_group(band):
    """(group, position in it) of a band: widths in the order of their first appearance."""
    widths = [end - first for first, end in BANDS]
    group = list(dict.fromkeys(widths)).index(widths[band])
    return group, widths[:band].count(widths[band])


def loop_over_bands(spectrogram, weights, biases, feature_dim):
    """[B, F, T, 2] -> [B, K, T, N] with a GroupNorm and a Linear per band."""
    features = []
    for band, (first, end) in enumerate(BANDS):
        group, position = place_in_group(band)
        # [B, w, T, 2] -> [B, 2 w, T]
        values = spectrogram[:, first:end].permute(0, 1, 3, 2).flatten(1, 2)
        normed = nn.GroupNorm(1, 2 * (end - first))(values)
        linear = nn.Linear(2 * (end - first), feature_dim)
        with torch.no_grad():
            linear.weight.copy_(weights[group][position].T)
            linear.bias.copy_(biases[group][position, 0])
        features.append(linear(normed.transpose(1, 2)))
    return torch.stack(features, dim=1)


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_equals_a_loop_over_bands(frames):
    torch.manual_seed(0)
    split = BandSplit(BANDS, feature_dim=6)
    spectrogram = torch.randn(3, NUM_BINS, frames, 2) * 5 + 1
    features = split(spectrogram)
    assert features.shape == (3, len(BANDS), frames, 6)
    expected = loop_over_bands(spectrogram, split.weights, split.biases, 6)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


def test_a_band_sees_its_own_bins_only():
    torch.manual_seed(0)
    split = BandSplit(BANDS, feature_dim=6)
    spectrogram = torch.randn(1, NUM_BINS, 4, 2)
    changed = spectrogram.clone()
    changed[:, 8:11] += torch.randn(3, 4, 2)
    differs = (split(changed) - split(spectrogram)).abs().amax(dim=(0, 2, 3)) > 0
    assert differs.tolist() == [False, False, False, False, True, False]


def test_every_weight_has_a_gradient():
    torch.manual_seed(0)
    split = BandSplit(BANDS, feature_dim=6)
    split(torch.randn(1, NUM_BINS, 4, 2)).square().sum().backward()
    assert sum(p.numel() for p in split.parameters()) == sum(
        6 * 2 * (end - first) + 6 for first, end in BANDS
    )
    for parameter in split.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).all()


def test_groups_lead_back_to_bands_and_bins():
    groups = BandGroups(BANDS)
    assert groups.widths == [2, 3, 1]
    assert groups.counts == [3, 2, 1]
    in_groups = torch.tensor([0, 2, 5, 1, 4, 3])
    assert in_groups[groups.band_order].tolist() == list(range(len(BANDS)))
    assert torch.cat(groups.group_bins)[groups.bin_order].tolist() == list(range(NUM_BINS))


def test_weights_are_drawn_as_linear_draws_its_own():
    torch.manual_seed(0)
    weight, bias = grouped_linear((4, 50, 64))
    linear = nn.Linear(50, 64)
    bound = 1 / math.sqrt(50)
    for values, of_torch in ((weight, linear.weight), (bias, linear.bias)):
        assert values.abs().max().item() <= bound
        assert values.abs().max().item() == pytest.approx(of_torch.abs().max().item(), rel=0.05)
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.08)
    assert weight.shape == (4, 50, 64)
    assert bias.shape == (4, 1, 64)
