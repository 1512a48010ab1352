"""BSRNN: what its masks do to a mixture, heads and trunk, sizes by hand, golden values."""

import dataclasses

import pytest
import torch

from bsrnn_core.config import BsrnnConfig, ModelConfig, StftConfig
from bsrnn_core.losses import separation_loss
from bsrnn_core.model import BSRNN, num_parameters
from bsrnn_core.precision import has_bf16
from bsrnn_core.stft import stft

STEMS = ("vocals", "drums", "bass")
# 9 bins of 500 Hz in bands of 2, 2 and 5.
STFT = StftConfig(sample_rate=8000, n_fft=16)
MODEL = ModelConfig(
    band_schema="custom",
    splits=((2000.0, 1000.0), (4000.0, 2000.0)),
    feature_dim=3,
    num_blstm_layers=1,
    mlp_dim=4,
)


def tiny(stems=STEMS, seed=0, **sizes):
    torch.manual_seed(seed)
    model = dataclasses.replace(MODEL, **sizes)
    return BSRNN(BsrnnConfig(stft=STFT, model=model, stems=stems))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mixtures(batch=2, channels=2, samples=100, seed=0):
    return stft(noise(batch, channels, samples, seed=seed), STFT)


def make_masks_one(model):
    """Set the last layers so that the gated linear unit gives 1 + 0i whatever comes in."""
    with torch.no_grad():
        for weight, bias in zip(model.heads.output_weights, model.heads.output_biases, strict=True):
            weight.zero_()
            values, gates = bias.chunk(2, dim=-1)
            values[..., 0::2], values[..., 1::2] = 1, 0
            gates.fill_(100)


def test_masks_of_one_give_the_mixture():
    model, mixture = tiny(), mixtures()
    make_masks_one(model)
    estimates = model(mixture)
    assert estimates.shape == (2, 3, 2, 9, mixture.shape[-1])
    torch.testing.assert_close(estimates, mixture[:, None].expand_as(estimates))


def test_estimates_are_masked_mixtures():
    model, mixture = tiny(), mixtures()
    expected = model.masks(mixture) * mixture[:, None]
    torch.testing.assert_close(model(mixture), expected)


@pytest.mark.parametrize("factor", [2.0, 1e-3])
def test_scaled_mixture_gives_scaled_estimates(factor):
    model, mixture = tiny(), mixtures()
    estimates = model(mixture)
    torch.testing.assert_close(model(factor * mixture) / factor, estimates, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 3, 50])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_number_of_frames(frames, channels):
    mixture = torch.complex(*noise(2, 1, channels, 9, frames))
    estimates = tiny()(mixture)
    assert estimates.shape == (1, 3, channels, 9, frames)
    assert torch.view_as_real(estimates).isfinite().all()


def test_silence_gives_silence():
    silence = torch.zeros(1, 2, 9, 5, dtype=torch.complex64)
    assert torch.equal(tiny()(silence), silence[:, None].expand(1, 3, 2, 9, 5))


def test_each_channel_is_an_item_of_its_own():
    model = tiny()
    mono = mixtures(batch=1, channels=1)
    # Twice the same channel has the statistics of one.
    both = model(torch.cat([mono, mono], dim=1))
    torch.testing.assert_close(both, model(mono).expand_as(both))

    # Turned about in time, a channel keeps its part in the statistics: the other cannot tell.
    stereo = mixtures(batch=1)
    turned = torch.cat([stereo[:, :1], stereo[:, 1:].flip(-1)], dim=1)
    torch.testing.assert_close(model(turned)[:, :, 0], model(stereo)[:, :, 0])
    assert (model(turned)[:, :, 1] - model(stereo)[:, :, 1]).abs().max() > 1e-3

    swapped = model(stereo.flip(1))
    torch.testing.assert_close(swapped, model(stereo).flip(2))


def test_items_of_a_batch_do_not_meet():
    model, mixture = tiny(), mixtures(batch=3)
    torch.testing.assert_close(model(mixture)[1:2], model(mixture[1:2]))


def test_a_stem_has_a_head_of_its_own():
    model, mixture = tiny(), mixtures()
    before = model(mixture)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter[1] += 0.1
    changed = (model(mixture) - before).abs().amax(dim=(0, 2, 3, 4)) > 0
    assert changed.tolist() == [False, True, False]


def test_head_of_many_equals_a_model_of_one_stem():
    model, mixture = tiny(), mixtures()
    estimates = model(mixture)
    for index, stem in enumerate(STEMS):
        one = tiny((stem,), seed=1)
        one.trunk.load_state_dict(model.trunk.state_dict())
        with torch.no_grad():
            for mine, theirs in zip(one.heads.parameters(), model.heads.parameters(), strict=True):
                mine.copy_(theirs[index : index + 1])
        torch.testing.assert_close(one(mixture)[:, 0], estimates[:, index])
        assert one.stems == (stem,)


def test_parameters_counted_by_hand():
    split = 2 * (4 * 3 + 3) + (10 * 3 + 3)
    lstm = 2 * (4 * 6 * (3 + 6) + 8 * 6)
    sequence = 2 * (2 * 3 + lstm + (12 * 3 + 3))
    heads = 2 * ((3 * 4 + 4) + (4 * 8 + 8)) + ((3 * 4 + 4) + (4 * 20 + 20))
    assert split + sequence + heads == 1437
    for stems in (("drums",), STEMS):
        count = sum(parameter.numel() for parameter in tiny(stems).parameters())
        assert count == split + sequence + heads * len(stems)

    # 3 x (5 - width + 1): 12 hidden units for the bands of 2 bins, 3 for that of 5.
    reduced = 2 * ((3 * 12 + 12) + (12 * 8 + 8)) + ((3 * 3 + 3) + (3 * 20 + 20))
    count = sum(p.numel() for p in tiny(("drums",), reduce_size=True).parameters())
    assert count == split + sequence + reduced


def test_hidden_width_and_number_of_modules_are_those_asked_for():
    model = tiny(hidden_dim=5, num_blstm_layers=3)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.LSTM)]
    assert [layer.hidden_size for layer in layers] == 6 * [5]
    assert model(mixtures()).shape[1] == 3


def test_golden_values():
    random = torch.Generator().manual_seed(1234)
    model = tiny(num_blstm_layers=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.empty_like(parameter).uniform_(-1, 1, generator=random))
    samples = torch.sin(torch.arange(200.0).square() / 300).view(1, 2, 100)
    estimates = torch.view_as_real(model(stft(samples, STFT)))
    found = [
        estimates[0, 0, 0, 1, 3, 0],
        estimates[0, 0, 1, 4, 5, 1],
        estimates[0, 1, 0, 2, 8, 0],
        estimates[0, 1, 1, 3, 12, 1],
        estimates[0, 2, 0, 0, 7, 0],
        estimates[0, 2, 1, 8, 20, 0],
        estimates.abs().mean(),
        estimates.std(),
    ]
    expected = [0.18241, 0.004309, 0.866476, 1.227192, 3.816833, 0.000407, 0.323124, 0.812553]
    assert [value.item() for value in found] == pytest.approx(expected, abs=1e-5)


def test_graft_keeps_the_trunk_and_gets_new_heads():
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grafted = model.graft(("piano", "drums"))
    assert grafted.stems == ("piano", "drums")
    assert grafted.config.model == model.config.model
    assert grafted.trunk is model.trunk
    assert grafted(mixtures()).shape[1] == 2
    new, old = grafted.heads.state_dict(), model.heads.state_dict()
    assert all(not torch.equal(new[name][1], old[name][1]) for name in new)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_trunk_stays_while_the_heads_learn():
    model, mixture = tiny(), mixtures()
    model.freeze_trunk()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(mixture).abs().mean().backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in model.trunk.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("trunk."), name


def test_no_graph_goes_through_a_frozen_trunk_until_it_is_unfrozen():
    model, mixture = tiny(), mixtures()
    expected, seen = model(mixture), []

    def note(_module, _inputs, output):
        seen.append((output.requires_grad, model.trunk.training, model.heads.training))

    model.trunk.register_forward_hook(note)
    model.freeze_trunk()
    for mode in (True, False):
        model.train(mode)
        torch.testing.assert_close(model(mixture), expected)
    model.unfreeze_trunk()
    model.train()
    model(mixture).abs().mean().backward()
    assert seen == [(False, False, True), (False, False, False), (True, True, True)]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_without_gradients_a_trunk_that_is_trained_builds_no_graph():
    with torch.no_grad():
        assert not tiny()(mixtures()).requires_grad


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this CPU has no bf16 LSTMs")
def test_bf16_autocast_is_close():
    model, mixture = tiny(feature_dim=16, mlp_dim=16), mixtures()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        masks, estimates = model.masks(mixture), model(mixture)
    expected = model.masks(mixture)
    assert estimates.dtype == torch.complex64
    error = (masks - expected).abs()
    assert 0 < error.max() < 0.05 * expected.abs().max()
    estimates.abs().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_overfits_one_batch():
    torch.manual_seed(0)
    config = BsrnnConfig(
        stft=StftConfig(sample_rate=8000, n_fft=128),
        model=ModelConfig(band_schema="generic", num_bands=8, feature_dim=8, num_blstm_layers=1),
        stems=("low", "noise"),
    )
    time = torch.arange(4000) / 8000
    pitches = torch.tensor([220.0, 330.0]).view(2, 1, 1)
    low = torch.sin(2 * torch.pi * pitches * time)
    clicks = noise(2, 1, 4000) * (time % 0.1 < 0.02)
    references = stft(torch.stack([low, clicks], dim=1), config.stft)
    mixture = references.sum(1)
    model = BSRNN(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        loss = separation_loss(mixture, references, model(mixture), config.stft)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        losses.append(loss.detach())
    assert (losses[-1] < 0.2 * losses[0]).all()


@pytest.mark.parametrize("reduce_size", [False, True])
@pytest.mark.parametrize("stems", [("drums",), ("vocals", "drums", "bass")])
@pytest.mark.parametrize("hidden_dim", [None, 7])
def test_parameters_are_counted_without_a_model(reduce_size, stems, hidden_dim):
    config = BsrnnConfig(
        stft=StftConfig(n_fft=512),
        model=ModelConfig(
            band_schema="v7", feature_dim=6, num_blstm_layers=3, mlp_dim=10,
            hidden_dim=hidden_dim, reduce_size=reduce_size,
        ),
        stems=stems,
    )  # fmt: skip
    counted = sum(values.numel() for values in BSRNN(config).state_dict().values())
    assert num_parameters(config) == counted
