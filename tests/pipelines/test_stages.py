"""Base, MTL and transfer: what each trains, what it leaves as it is, and what it refuses."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bsrnn_core import checkpoint
from bsrnn_core.losses import separation_loss
from bsrnn_core.model import BSRNN
from pipelines import base, mtl
from pipelines.cli import main
from pipelines.config import TrainConfig
from pipelines.config_files import save_yaml
from pipelines.events import Events
from pipelines.stopping import Stop
from pipelines.training import Training, TrainingJob
from pipelines.training_state import initial_model

BOTH = ("vocals", "drums")
EPOCHS = 3


class Killed(Exception):
    """Ends a training where it stands."""


@dataclass
class Notes:
    """Hears a training, and kills it at a step or after an epoch (from one) when told so."""

    at_step: int | None = None
    after_epoch: int | None = None
    metrics: list[dict[str, float]] = field(default_factory=list)
    epochs: int = 0

    def events(self) -> Events:
        return Events(
            on_step=self._step, on_metrics=lambda _, m: self.metrics.append(m), on_epoch=self._epoch
        )

    def _step(self, status: dict[str, float]) -> None:
        if status["step"] == self.at_step:
            raise Killed

    def _epoch(self, _: object) -> None:
        self.epochs += 1
        if self.epochs == self.after_epoch:
            raise Killed


@pytest.fixture
def make(tiny_shards: Path) -> Callable[..., Training]:
    """``make(config, folder)`` is the training that one worker would run."""

    def training(config: TrainConfig, folder: Path, notes: Notes | None = None) -> Training:
        job = TrainingJob(config=config, folder=folder, shards=tiny_shards, metadata={})
        return Training(job, device=torch.device("cpu"), events=(notes or Notes()).events())

    return training


def trunk_of(config: TrainConfig, part: tuple[str, ...], folder: Path) -> BSRNN:
    """A model for ``part``, kept in ``folder`` as a checkpoint."""
    torch.manual_seed(77)
    model = BSRNN(replace(config, part=part).bsrnn)
    checkpoint.save(folder, model, {})
    return model


def transfer_of(config: TrainConfig, folder: Path, part: tuple[str, ...], **options: Any):
    return replace(config, part=part, checkpoint_fp=str(folder), transfer=True, **options)


def begun(config: TrainConfig) -> BSRNN:
    """The model as it is before the first step."""
    torch.manual_seed(config.seed)
    return initial_model(config)


def saved(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The weights of a run by where they are kept."""
    state = torch.load(folder / "last" / "training_state.pt", weights_only=True)
    models = {name: checkpoint.load(folder / name).state_dict() for name in ("best", "last")}
    return {**models, "state": state["model"]}


def same(one: dict[str, Tensor], other: dict[str, Tensor], prefix: str = "") -> bool:
    """Bit for bit, of the weights whose names begin so."""
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one if name.startswith(prefix))


def same_runs(one: Path, other: Path) -> bool:
    weights = zip(saved(one).values(), saved(other).values(), strict=True)
    return all(same(*pair) for pair in weights)


def moved(was: dict[str, Tensor], now: dict[str, Tensor], prefix: str) -> bool:
    """Whether each of these weights is another now."""
    names = [name for name in was if name.startswith(prefix)]
    return bool(names) and all(not torch.equal(was[name], now[name]) for name in names)


# --- transfer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "part"),
    [
        (("vocals",), ("drums",)),
        (("vocals",), ("vocals",)),
        (BOTH, ("drums",)),
        (BOTH, BOTH),
        (("vocals",), BOTH),
        (("piano", "strings"), ("drums",)),
    ],
    ids=str,
)
def test_a_transfer_trains_fresh_heads_and_keeps_the_trunk_bit_for_bit(
    of, part, make, tiny_config, tmp_path
):
    trunk = trunk_of(tiny_config, of, tmp_path / "base")
    config = transfer_of(tiny_config, tmp_path / "base", part)
    fresh = begun(config).state_dict()
    for index, stem in enumerate(part):
        old = of.index(stem) if stem in of else 0
        for new, kept in zip(
            begun(config).heads.parameters(), trunk.heads.parameters(), strict=True
        ):
            assert not torch.equal(new[index], kept[old])
    make(config, tmp_path / "run").run()
    for weights in saved(tmp_path / "run").values():
        for name, value in trunk.trunk.state_dict().items():
            assert torch.equal(weights[f"trunk.{name}"], value), name
        assert moved(fresh, weights, "heads.")


def test_no_graph_is_built_through_a_frozen_trunk(make, tiny_config, tmp_path):
    trunk_of(tiny_config, BOTH, tmp_path / "base")
    made = make(transfer_of(tiny_config, tmp_path / "base", ("drums",)), tmp_path / "run")
    trunk, seen = made.state.model.trunk, []

    def note(_module: object, _inputs: object, output: Tensor) -> None:
        in_training = any(module.training for module in trunk.modules())
        seen.append((output.requires_grad, in_training, made.state.model.heads.training))

    trunk.register_forward_hook(note)
    made.run()
    # What is validated is the averaged model, which has no hook.
    assert seen == 4 * [(False, False, True)]
    assert all(p.grad is None and not p.requires_grad for p in trunk.parameters())
    assert all(p.grad is not None for p in made.state.model.heads.parameters())


def test_only_what_is_trained_is_counted(make, tiny_config, tmp_path):
    model, notes = trunk_of(tiny_config, ("vocals",), tmp_path / "base"), Notes()
    config = transfer_of(tiny_config, tmp_path / "base", ("vocals",), unfreeze_after_epochs=1)
    make(config, tmp_path / "run", notes).run()
    heads, all_of_it = (sum(p.numel() for p in m.parameters()) for m in (model.heads, model))
    counted = [m["system/parameters_trained"] for m in notes.metrics if "system/minutes" in m]
    assert counted == [heads, all_of_it]


# --- a trunk that is trained later ----------------------------------------------------------


@pytest.fixture
def unfreezing(tiny_config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """Three epochs of two steps, the last two with the trunk."""
    trunk_of(tiny_config, ("vocals",), tmp_path / "base")
    longer = replace(tiny_config, optim=replace(tiny_config.optim, max_epochs=EPOCHS))
    return transfer_of(longer, tmp_path / "base", ("drums",), unfreeze_after_epochs=1)


def test_the_trunk_is_trained_from_its_epoch_on(make, unfreezing, tmp_path):
    made = make(unfreezing, tmp_path / "run")
    before = copy.deepcopy(made.state.model.state_dict())
    frozen: list[bool] = []

    def note(_: object) -> None:
        for weights in (made.state.model.state_dict(), made.state.scored_model.state_dict()):
            frozen.append(same(before, weights, "trunk."))
            assert frozen[-1] or moved(before, weights, "trunk.")
            assert moved(before, weights, "heads.")

    made.events.on_epoch = note
    made.run()
    assert frozen == [True, True, False, False, False, False]
    assert all(module.training for module in made.network.train().modules())


@pytest.mark.parametrize(
    "death",
    [{"at_step": 1}, {"at_step": 2}, {"after_epoch": 1}, {"at_step": 3}, {"after_epoch": 2}],
    ids=str,
)
def test_killed_before_or_after_the_unfreezing_it_gives_the_same_bits(
    death, make, unfreezing, tmp_path
):
    make(unfreezing, tmp_path / "whole").run()
    with pytest.raises(Killed):
        make(unfreezing, tmp_path / "killed", Notes(**death)).run()
    torch.manual_seed(1234)
    make(unfreezing, tmp_path / "killed").run()
    assert same_runs(tmp_path / "killed", tmp_path / "whole")


def test_out_of_time_after_the_unfreezing_it_goes_on_with_the_same_bits(
    make, unfreezing, tmp_path, monkeypatch
):
    make(unfreezing, tmp_path / "whole").run()
    with monkeypatch.context() as patch:
        patch.setattr(
            Training,
            "_agreed_stop",
            lambda self: Stop.OUT_OF_TIME if self.state.progress.step == 3 else Stop.NO,
        )
        stopped = make(unfreezing, tmp_path / "stopped")
        stopped.run()
    assert (stopped.state.progress.epoch, stopped.state.progress.step) == (1, 3)
    make(unfreezing, tmp_path / "stopped").run()
    assert same(saved(tmp_path / "stopped")["last"], saved(tmp_path / "whole")["last"])


# --- multi-task learning --------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(), (0.5, 3.0)], ids=str)
def test_logged_loss_is_the_weighted_sum_of_the_stems(weights, make, tiny_config, tmp_path):
    notes = Notes()
    make(replace(tiny_config, stem_weights=weights), tmp_path, notes).run()
    losses = [metrics for metrics in notes.metrics if "train/loss" in metrics]
    assert losses
    for metrics in losses:
        vocals, drums = (metrics[f"train/loss_{stem}"] for stem in BOTH)
        first, second = weights or (1.0, 1.0)
        assert metrics["train/loss"] == pytest.approx(first * vocals + second * drums, rel=1e-6)


def test_gradients_follow_the_weights(make, tiny_config, tmp_path):
    optim = replace(tiny_config.optim, clip_grad_norm=0.0)
    made = make(replace(tiny_config, optim=optim, stem_weights=(0.5, 3.0)), tmp_path)
    batch, model = made.batches.batch(0, 0), copy.deepcopy(made.state.model)
    made.train_step(batch)
    losses = separation_loss(
        batch.mixture, batch.references, model(batch.mixture), tiny_config.stft
    )
    vocals, drums = (
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses
    )
    trained = made.state.model.parameters()
    for parameter, one, other in zip(trained, vocals, drums, strict=True):
        torch.testing.assert_close(parameter.grad, 0.5 * one + 3 * other, rtol=1e-4, atol=1e-6)


def test_weights_of_one_change_no_bit(make, tiny_config, tmp_path):
    for name, weights in {"none": (), "ones": (1.0, 1.0), "others": (2.0, 1.0)}.items():
        make(replace(tiny_config, stem_weights=weights), tmp_path / name).run()
    assert same_runs(tmp_path / "none", tmp_path / "ones")
    assert not same_runs(tmp_path / "none", tmp_path / "others")


@pytest.fixture
def without_ray(make: Callable[..., Training], monkeypatch: pytest.MonkeyPatch):
    """Has trainings run in this process; a list of their configurations."""
    seen: list[TrainConfig] = []

    def run(config: TrainConfig) -> Path:
        seen.append(config)
        folder = Path(config.out) / config.name
        make(config, folder).run()
        return folder

    monkeypatch.setattr(base, "run", run)
    return seen


def test_mtl_of_one_stem_is_base_bit_for_bit(without_ray, tiny_config, tmp_path):
    one = replace(tiny_config, part=("vocals",), out=str(tmp_path))
    single = base.run(replace(one, name="base"))
    assert same_runs(mtl.run(replace(one, name="mtl")), single)
    assert [config.stage for config in without_ray] == ["base", "base"]


@pytest.mark.parametrize("music", ["shards", "songs"])
def test_mtl_trains_every_stem_of_the_music(music, without_ray, tiny_config, tiny_shards, tmp_path):
    # The shards know their stems, whatever --stem_names says.
    names = BOTH if music == "songs" else ("vocals", "drums", "bass", "other")
    config = replace(
        tiny_config,
        part=(),
        out=str(tmp_path),
        name="mtl",
        source=replace(tiny_config.source, stem_names=names),
        shards=str(tiny_shards) if music == "shards" else None,
    )
    assert checkpoint.load(mtl.run(config) / "best").stems == BOTH
    assert without_ray[0].stage == "mtl"


def test_mtl_by_command_takes_the_stems_that_are_named(without_ray, tiny_config, tmp_path):
    save_yaml(replace(tiny_config, part=(), out=str(tmp_path)), tmp_path / "options.yaml")
    words = ["mtl", "--config", str(tmp_path / "options.yaml")]
    assert main([*words, "--name", "all"]) == 0
    assert main([*words, "--name", "one", "--part", "drums"]) == 0
    assert [config.part for config in without_ray] == [BOTH, ("drums",)]
