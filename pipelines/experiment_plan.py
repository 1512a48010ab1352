"""Which trainings an experiment consists of, as a list that nothing is done with yet.

For each band schema and seed: a base model of one stem and a transfer from it to every other stem;
an MTL model of all stems and a transfer from its trunk to every stem; and, as the control, every
stem from scratch with as many steps as a transfer has.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from bsrnn_core.bands import model_bands
from bsrnn_core.config import ModelConfig
from bsrnn_core.errors import BadInput
from pipelines.config import TrainConfig

SCRATCH = "from scratch"
"""The way of training of the controls, as they are tagged in MLflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentConfig:
    """Options of `bsrnn experiment`."""

    schemas: tuple[str, ...] = ("v7", "generic")
    """Band schemas that are compared."""
    base_part: str = "drums"
    """Stem of the base models."""
    transfer_part: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Stem to transfer to; repeat it for several (all stems when not given)."""
    transfer_epochs: int | None = None
    """Epochs of the transfers and controls (max_epochs when not given)."""
    mtl: bool = True
    """Train MTL models of all stems too, and transfer from them."""
    num_seeds: int = 3
    """Seeds that base, MTL and transfers are trained with: --seed and those after it."""
    control_seeds: int | None = None
    """Seeds of the controls (num_seeds when not given, 0 for no controls)."""
    max_concurrent: int | None = None
    """Trainings that run side by side (as many as the cluster holds when not given)."""
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        for name in ("num_seeds", "max_concurrent", "transfer_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{name} must be at least 1, not {value}")
        if self.control_seeds is not None and self.control_seeds < 0:
            raise BadInput(f"control_seeds must not be negative, not {self.control_seeds}")
        for name in ("schemas", "transfer_part"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise BadInput(f"{name} names one twice: {', '.join(values)}")
        if not self.schemas:
            raise BadInput("schemas must name at least one band schema")

    @property
    def stems(self) -> tuple[str, ...]:
        """The stems of the MTL models."""
        return self.train.part or self.train.source.stem_names

    @property
    def targets(self) -> tuple[str, ...]:
        """The stems that are transferred to."""
        return self.transfer_part or self.stems


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One training of an experiment."""

    config: TrainConfig
    way: str | None = None
    """Its way of training where its tags do not tell by themselves."""
    trunk: str | None = None
    """Name of the step whose trunk it starts from."""

    @property
    def name(self) -> str:
        """Of the run and its folder; unlike any other step's."""
        return self.config.name

    @property
    def schema(self) -> str:
        """Its band schema."""
        return self.config.model.band_schema


def plan(config: ExperimentConfig) -> list[Step]:
    """The steps, each after the one that it starts from.

    Raises BadInput for stems that the music has not, a schema that cannot be met, and options of
    `bsrnn train` that mean nothing here.
    """
    _check(config)
    return [
        step
        for number in range(max(config.num_seeds, config.control_seeds or 0))
        for schema in config.schemas
        for step in _steps(config, schema, number)
    ]


def _check(config: ExperimentConfig) -> None:
    train = config.train
    for name in ("checkpoint_fp", "transfer", "stem_weights"):
        if getattr(train, name) and not (name == "stem_weights" and config.mtl):
            raise BadInput(f"{name} means nothing to an experiment: leave it away")
    if not train.source.musdbhq_location:
        raise BadInput("say where the music is: --musdbhq_location DIR")
    if train.seed < 0:
        raise BadInput("an experiment counts its seeds from --seed: give one that is not negative")
    for stem in (config.base_part, *config.targets, *config.stems):
        if stem not in train.source.stem_names:
            raise BadInput(
                f"{stem} is not among the stems {', '.join(train.source.stem_names)}: name those "
                "of your music with --stem_names"
            )
    for schema in config.schemas:
        model_bands(train.stft, _with_schema(train.model, schema))


def _steps(config: ExperimentConfig, schema: str, number: int) -> Iterator[Step]:
    seed = config.train.seed + number
    if number < config.num_seeds:
        base = _step(config, schema, seed, f"base-{config.base_part}", (config.base_part,))
        yield base
        for stem in config.targets:
            if stem != config.base_part:
                yield _transfer(config, base, stem)
        if config.mtl:
            mtl = _step(config, schema, seed, "mtl", config.stems)
            yield mtl
            yield from (_transfer(config, mtl, stem) for stem in config.targets)
    controls = config.num_seeds if config.control_seeds is None else config.control_seeds
    if number < controls:
        for stem in config.targets:
            control = _step(config, schema, seed, f"scratch-{stem}", (stem,))
            yield Step(config=_short(config, control.config), way=SCRATCH)


def _step(
    config: ExperimentConfig, schema: str, seed: int, name: str, part: tuple[str, ...]
) -> Step:
    train = config.train
    return Step(
        config=dataclasses.replace(
            train,
            name=f"{schema}-{name}-seed{seed}",
            part=part,
            seed=seed,
            stem_weights=train.stem_weights if len(part) > 1 else (),
            unfreeze_after_epochs=None,
            model=_with_schema(train.model, schema),
        )
    )


def _with_schema(model: ModelConfig, schema: str) -> ModelConfig:
    splits = model.splits if schema == "custom" else ()
    return dataclasses.replace(model, band_schema=schema, splits=splits)


def _transfer(config: ExperimentConfig, trunk: Step, stem: str) -> Step:
    train = dataclasses.replace(
        trunk.config,
        name=f"{trunk.schema}-{trunk.config.stage}-to-{stem}-seed{trunk.config.seed}",
        part=(stem,),
        stem_weights=(),
        transfer=True,
        unfreeze_after_epochs=config.train.unfreeze_after_epochs,
    )
    return Step(config=_short(config, train), trunk=trunk.name)


def _short(config: ExperimentConfig, train: TrainConfig) -> TrainConfig:
    """With the epochs of a transfer, all of them: transfers and controls make the same steps."""
    epochs = config.transfer_epochs or train.optim.max_epochs
    optim = dataclasses.replace(train.optim, max_epochs=epochs, patience=0)
    return dataclasses.replace(train, optim=optim)
