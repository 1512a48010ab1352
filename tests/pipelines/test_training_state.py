"""What a training carries: learning rates and averaged weights by hand, and back from disk."""

import dataclasses
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bsrnn_core import checkpoint
from bsrnn_core.config import ModelConfig, StftConfig
from bsrnn_core.errors import BadInput
from bsrnn_core.model import BSRNN
from pipelines.config import OptimConfig, TrainConfig
from pipelines.training_state import STATE_FILE, TrainingState, initial_model, learning_rate_factor

CONFIG = TrainConfig(
    part=("vocals", "drums"),
    crop_seconds=0.5,
    stft=StftConfig(sample_rate=8000, n_fft=64),
    model=ModelConfig(
        band_schema="generic", num_bands=4, feature_dim=4, num_blstm_layers=1, mlp_dim=4
    ),
)


def model(seed: int = 0, config: TrainConfig = CONFIG) -> BSRNN:
    torch.manual_seed(seed)
    return BSRNN(config.bsrnn)


def step(state: TrainingState) -> None:
    """A step of the optimiser with all gradients one."""
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    state.after_step()


def state_of(optim: OptimConfig, steps: int = 0) -> TrainingState:
    state = TrainingState(model(), optim, steps_per_epoch=3)
    for _ in range(steps):
        step(state)
    return state


def same(left: object, right: object) -> bool:
    """Bit for bit, all the way down."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return isinstance(right, dict) and (
            left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
        )
    if isinstance(left, list | tuple):
        return isinstance(right, list | tuple) and (
            len(left) == len(right) and all(map(same, left, right))
        )
    return left == right


def test_step_schedule_decays_every_two_epochs():
    optim = OptimConfig(lr_decay=0.98)
    factors = [learning_rate_factor(step, optim, steps_per_epoch=3) for step in range(18)]
    assert factors == pytest.approx(6 * [1.0] + 6 * [0.98] + 6 * [0.9604])


def test_cosine_schedule_ends_at_zero():
    optim = OptimConfig(lr_schedule="cosine", max_epochs=4)
    factors = [learning_rate_factor(step, optim, 3) for step in (0, 3, 4, 6, 8, 9, 12, 100)]
    half, low = math.sqrt(0.5) / 2, 0.0
    assert factors == pytest.approx([1, 0.5 + half, 0.75, 0.5, 0.25, 0.5 - half, low, low])


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_warm_up_rises_linearly(schedule):
    optim = OptimConfig(lr_schedule=schedule, warmup_steps=4, max_epochs=1000)
    factors = [learning_rate_factor(step, optim, 1000) for step in range(7)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1], abs=1e-6)


def test_optimizer_follows_the_schedule():
    optim = OptimConfig(lr=0.5, lr_decay=0.1, warmup_steps=1)
    state = state_of(optim)
    rates = []
    for _ in range(9):
        rates.append(state.optimizer.param_groups[0]["lr"])
        step(state)
    assert rates == pytest.approx([0.25] + 5 * [0.5] + 3 * [0.05])
    assert state.progress.step == 9


@pytest.mark.parametrize("decay", [0.99, 0.2])
def test_averaged_weights_by_hand(decay):
    state = state_of(OptimConfig(lr=1e-9, ema_decay=decay))
    state.optimizer.step()
    expected = 0.0
    for count, value in enumerate([1.0, 3.0, -2.0, 5.0]):
        with torch.no_grad():
            for parameter in state.model.parameters():
                parameter.fill_(value)
        state.after_step()
        # The first is taken as it is; then 2/11, 3/12, 4/13 of the mean stay, at most `decay`.
        stays = min(decay, (1 + count) / (10 + count)) if count else 0.0
        expected = stays * expected + (1 - stays) * value
        for parameter in state.scored_model.parameters():
            torch.testing.assert_close(parameter, torch.full_like(parameter, expected))
    assert state.scored_model is not state.model


def test_without_averaging_the_model_itself_is_scored():
    state = state_of(OptimConfig())
    assert state.scored_model is state.model


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_restored_state_is_the_saved_one(tmp_path, ema_decay):
    optim = OptimConfig(lr=0.01, ema_decay=ema_decay, warmup_steps=2)
    saved = state_of(optim, steps=4)
    saved.progress.best_usdr = 3.5
    workers = [{"rng": torch.Generator().manual_seed(seed).get_state()} for seed in (5, 9)]
    saved.save(tmp_path / "last", {"step": 4}, workers)

    restored = TrainingState(model(seed=1), optim, steps_per_epoch=3)
    assert same(restored.restore(tmp_path / "last"), workers)
    for _ in range(2):
        assert restored.progress == saved.progress
        for name in ("model", "optimizer", "scheduler"):
            left, right = getattr(restored, name), getattr(saved, name)
            assert same(left.state_dict(), right.state_dict()), name
        assert same(restored.scored_model.state_dict(), saved.scored_model.state_dict())
        step(restored)
        step(saved)


def test_saved_folder_is_a_checkpoint_of_the_averaged_weights(tmp_path):
    state = state_of(OptimConfig(lr=0.1, ema_decay=0.9), steps=3)
    state.save(tmp_path / "last", {"step": 3}, [])
    loaded = checkpoint.load(tmp_path / "last")
    assert same(loaded.state_dict(), state.scored_model.state_dict())
    assert not same(loaded.state_dict(), state.model.state_dict())
    assert checkpoint.read_metadata(tmp_path / "last") == {"step": 3}


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, cut_short, lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"no state")],
    ids=["missing", "cut short", "empty", "of another kind"],
)
def test_damaged_state_is_refused_by_name(tmp_path, damage):
    state = state_of(OptimConfig(), steps=1)
    state.save(tmp_path / "last", {}, [])
    damage(tmp_path / "last" / "training_state.pt")
    with pytest.raises(BadInput, match="last: cannot go on"):
        state.restore(tmp_path / "last")


def test_state_of_another_model_is_refused(tmp_path):
    state_of(OptimConfig()).save(tmp_path / "last", {}, [])
    wider = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, feature_dim=5))
    other = TrainingState(model(config=wider), OptimConfig(), steps_per_epoch=3)
    with pytest.raises(BadInput, match="trained with other options"):
        other.restore(tmp_path / "last")


def test_training_starts_from_the_weights_of_a_checkpoint(tmp_path):
    checkpoint.save(tmp_path / "base", model(seed=3), {})
    config = dataclasses.replace(CONFIG, checkpoint_fp=str(tmp_path / "base"), crop_seconds=0.25)
    started = initial_model(config)
    assert same(started.state_dict(), model(seed=3).state_dict())
    assert started.config == config.bsrnn


def test_heads_for_other_stems_start_anew(tmp_path):
    base = model(seed=3)
    checkpoint.save(tmp_path / "base", base, {})
    config = dataclasses.replace(
        CONFIG, checkpoint_fp=str(tmp_path / "base"), part=("piano",), crop_seconds=0.25
    )
    started = initial_model(config)
    assert same(started.trunk.state_dict(), base.trunk.state_dict())
    assert started.config == config.bsrnn
    assert started(torch.ones(1, 1, 33, 2, dtype=torch.complex64)).shape[1] == 1


def test_checkpoint_of_another_model_is_refused_with_what_differs(tmp_path):
    checkpoint.save(tmp_path / "base", model(), {})
    for change, phrase in [
        ({"model": dataclasses.replace(CONFIG.model, feature_dim=5)}, "feature_dim is 4 and not 5"),
        ({"stft": dataclasses.replace(CONFIG.stft, hop_samples=8)}, "hop_samples is 16 and not 8"),
    ]:
        config = dataclasses.replace(CONFIG, checkpoint_fp=str(tmp_path / "base"), **change)
        with pytest.raises(BadInput, match=phrase):
            initial_model(config)
    spelled_out = dataclasses.replace(
        CONFIG,
        checkpoint_fp=str(tmp_path / "base"),
        stft=dataclasses.replace(CONFIG.stft, hop_samples=16),
        model=dataclasses.replace(CONFIG.model, hidden_dim=8),
    )
    assert same(initial_model(spelled_out).state_dict(), model().state_dict())


@pytest.mark.parametrize(("option", "value"), [("mlp_dim", 6), ("reduce_size", True)])
def test_only_fresh_heads_may_have_another_size(tmp_path, option, value):
    checkpoint.save(tmp_path / "base", model(), {})
    sizes = dataclasses.replace(CONFIG.model, **{option: value})
    config = dataclasses.replace(CONFIG, checkpoint_fp=str(tmp_path / "base"), model=sizes)
    with pytest.raises(BadInput, match=f"{option} is .* and not {value}"):
        initial_model(config)
    for fresh in (
        dataclasses.replace(config, transfer=True),
        dataclasses.replace(config, part=("drums",)),
    ):
        started = initial_model(fresh)
        assert started.config == fresh.bsrnn
        assert same(started.trunk.state_dict(), model().trunk.state_dict())
        shapes = [p.shape for p in started.heads.parameters()]
        assert shapes == [p.shape for p in BSRNN(fresh.bsrnn).heads.parameters()]


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("write", [torch.save, lambda p, f: f.write_bytes(pickle.dumps(p))])
def test_a_pickled_state_is_never_executed(tmp_path: Path, write: Callable[..., object]) -> None:
    proof = tmp_path / "executed"
    (tmp_path / "last").mkdir()
    write({"model": Payload(proof)}, tmp_path / "last" / STATE_FILE)
    with pytest.raises(BadInput, match="cannot go on from this checkpoint"):
        state_of(OptimConfig()).restore(tmp_path / "last")
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"text", bytes(1000), b"PK\3\4" + bytes(99)])
def test_a_state_of_any_bytes_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / STATE_FILE).write_bytes(content)
    with pytest.raises(BadInput, match="cannot go on from this checkpoint"):
        state_of(OptimConfig()).restore(tmp_path / "last")
