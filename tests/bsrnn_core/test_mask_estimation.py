"""Mask heads computed together equal one plain MLP per stem and band."""

import pytest
import torch
from torch import nn

from bsrnn_core.mask_estimation import MaskEstimation

# Widths 2 3 2 1 3: three groups whose members do not lie side by side.
BANDS = [(0, 2), (2, 5), (5, 7), (7, 8), (8, 11)]
NUM_BINS, FEATURES, MLP = 11, 4, 7


def plain_mlp(heads, stem, band):
    """The layers of one stem and band as torch's own, with the weights of ``heads``."""
    widths = [end - first for first, end in BANDS]
    group = list(dict.fromkeys(widths)).index(widths[band])
    at = (stem, widths[:band].count(widths[band]))
    hidden_weight, output_weight = heads.hidden_weights[group][at], heads.output_weights[group][at]
    first, last = nn.Linear(*hidden_weight.shape), nn.Linear(*output_weight.shape)
    with torch.no_grad():
        first.weight.copy_(hidden_weight.T)
        first.bias.copy_(heads.hidden_biases[group][at][0])
        last.weight.copy_(output_weight.T)
        last.bias.copy_(heads.output_biases[group][at][0])
    return nn.Sequential(first, nn.Tanh(), last, nn.GLU())


def loop_over_stems_and_bands(features, heads, num_stems):
    """[B, K, T, N] -> [B, S, F, T, 2] with a GroupNorm per band and an MLP per stem and band."""
    stems = []
    for stem in range(num_stems):
        masks = []
        for band in range(len(BANDS)):
            normed = nn.GroupNorm(1, FEATURES)(features[:, band].transpose(1, 2)).transpose(1, 2)
            values = plain_mlp(heads, stem, band)(normed)  # [B, T, 2 w]
            masks.append(values.unflatten(-1, (-1, 2)).transpose(1, 2))
        stems.append(torch.cat(masks, dim=1))
    return torch.stack(stems, dim=1)


@pytest.mark.parametrize("reduce_size", [False, True])
@pytest.mark.parametrize("num_stems", [1, 3])
@pytest.mark.parametrize("frames", [1, 6])
def test_equals_a_loop_over_stems_and_bands(reduce_size, num_stems, frames):
    torch.manual_seed(0)
    heads = MaskEstimation(BANDS, num_stems, FEATURES, MLP, reduce_size)
    features = torch.randn(2, len(BANDS), frames, FEATURES) * 3 + 1
    masks = heads(features)
    assert masks.shape == (2, num_stems, NUM_BINS, frames, 2)
    expected = loop_over_stems_and_bands(features, heads, num_stems)
    torch.testing.assert_close(masks, expected, rtol=0, atol=1e-5)


def test_hidden_widths():
    heads = MaskEstimation(BANDS, 1, FEATURES, MLP, reduce_size=False)
    assert [weight.shape[-1] for weight in heads.hidden_weights] == [MLP] * 3
    # 3 x (widest - own + 1) for the bands of 2, 3 and 1 bins.
    heads = MaskEstimation(BANDS, 1, FEATURES, MLP, reduce_size=True)
    assert [weight.shape[-1] for weight in heads.hidden_weights] == [6, 3, 9]


def test_every_weight_has_a_gradient():
    torch.manual_seed(0)
    heads = MaskEstimation(BANDS, 2, FEATURES, MLP, reduce_size=False)
    heads(torch.randn(1, len(BANDS), 5, FEATURES)).square().sum().backward()
    for parameter in heads.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).all()
