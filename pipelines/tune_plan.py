"""What a sweep consists of, as options and a list of trials that nothing is done with yet."""

import contextlib
import functools
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from bsrnn_core.bands import model_bands
from bsrnn_core.config import BsrnnConfig, ModelConfig
from bsrnn_core.errors import BadInput
from data_prep.config import ChunkConfig, PrepConfig
from pipelines.config import TrainConfig
from pipelines.config_files import leaves, with_values, yaml_values
from pipelines.training_state import initial_model
from pipelines.tune_space import Axis, as_words, parse_space, varies_shards

DEFAULT_SAMPLES = 16
"""Trials of a random or TPE search when their number is not given."""
MOST_CHECKED = 1000
"""Combinations of which a search is checked for legal ones; a grid is checked as a whole."""
TRIES_PER_SAMPLE = 50
"""Draws for one trial of a random search before the space counts as used up."""

Values = Mapping[str, Any]
"""What a trial has its own values of, by the option's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    """Options of `bsrnn tune`."""

    space: tuple[str, ...] = ()
    """What to vary, each as "NAME=[VALUE,VALUE,...]" or "NAME=loguniform(LOW,HIGH)" (uniform,
    randint, lograndint): any option of a training."""
    search: Literal["grid", "random", "tpe"] = "grid"
    """grid: every combination; random: drawn anew for each trial; tpe: Optuna's, which learns from
    the trials before."""
    num_samples: int | None = None
    """random and tpe: trials (16 when not given)."""
    max_concurrent: int | None = None
    """Trials that run side by side (as many as the cluster holds when not given)."""
    workers_per_trial: int | None = None
    """Ray Train workers of a trial (num_workers when not given)."""
    time_budget_minutes: float | None = None
    """Time after which no more trials begin and those that run are halted, for --resume."""
    asha: bool = True
    """Stop trials early that lag behind in validation uSDR (ASHA)."""
    grace_epochs: int | None = None
    """asha: epochs that every trial has (max_epochs / reduction_factor^2 when not given)."""
    reduction_factor: float = 3.0
    """asha: of those that come to an epoch where it is decided, one in so many goes on."""
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_concurrent", "workers_per_trial", "grace_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{name} must be at least 1, not {value}")
        if self.time_budget_minutes is not None and self.time_budget_minutes <= 0:
            raise BadInput(f"time_budget_minutes must be positive, not {self.time_budget_minutes}")
        if self.reduction_factor <= 1:
            raise BadInput(f"reduction_factor must be above 1, not {self.reduction_factor}")
        if self.search == "grid" and self.num_samples is not None:
            raise BadInput(
                "num_samples goes with --search random or tpe: a grid tries every combination"
            )

    @property
    def trial(self) -> TrainConfig:
        """A trial's options before it gets its own values."""
        workers = self.workers_per_trial or self.train.cluster.num_workers
        return with_values(self.train, {"num_workers": workers})


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The space of a sweep and, but for TPE, its trials."""

    axes: tuple[Axis, ...]
    points: tuple[Values, ...] | None
    """The trials' values; None where they are found on the way."""
    num_trials: int
    remarks: tuple[str, ...]
    """What a user should know of it."""

    def values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a trial for what Ray Tune has drawn: a number of ``points``, or from the
        domain of every axis."""
        if self.points is not None:
            return dict(self.points[drawn["point"]])
        return {axis.name: axis.value(drawn[axis.name]) for axis in self.axes}

    def dataset(self, values: Values) -> str:
        """What tells the dataset of a trial from those of others, in JSON."""
        return json.dumps({axis.name: values[axis.name] for axis in varies_shards(self.axes)})


def trial_config(config: TuneConfig, values: Values) -> TrainConfig:
    """A trial's options. Raises BadInput where they do not go together."""
    return with_values(config.trial, values)


def plan(config: TuneConfig) -> Plan:
    """The sweep that ``config`` asks for.

    Raises BadInput for a space that means nothing, a search that does not suit it, and where no
    combination, or none with a certain value, can be trained.
    """
    axes = parse_space(config.space)
    intervals = [axis.name for axis in axes if not axis.is_list]
    if config.search == "grid" and intervals:
        raise BadInput(
            f"a grid cannot go through all of {intervals[0]}: list its values, or give "
            "--search random or tpe"
        )
    for axis in varies_shards(axes):
        if not axis.is_list:
            raise BadInput(f"every {axis.name} needs shards of its own: list its values")
        if config.train.shards:
            raise BadInput(
                f"--shards holds one {axis.name}: give --musdbhq_location, and every value's "
                "shards are prepared once"
            )
    extremes = _Combinations(config, axes)
    remarks = extremes.remarks()
    if config.search == "grid":
        points = extremes.legal
    elif config.search == "random":
        points = _drawn(config, axes)
        lacking = _samples(config) - len(points)
        if lacking:
            remarks.append(
                f"{len(points)} different trials that can be trained were found, {lacking} fewer "
                "than asked for"
            )
    else:
        points = None
        if not intervals and extremes.whole and extremes.count <= _samples(config):
            raise BadInput(
                f"the space holds {extremes.count} combinations, and {_samples(config)} trials "
                "are asked for: --search grid tries each once"
            )
    num_trials = _samples(config) if points is None else len(points)
    return Plan(
        axes=axes,
        points=None if points is None else tuple(points),
        num_trials=num_trials,
        remarks=tuple(remarks),
    )


def _samples(config: TuneConfig) -> int:
    return config.num_samples or DEFAULT_SAMPLES


class _Combinations:
    """The combinations of listed values and ends: which can be trained, and what speaks against
    the others."""

    def __init__(self, config: TuneConfig, axes: Sequence[Axis]) -> None:
        self.count = math.prod(len(axis.extremes) for axis in axes)
        self.whole = config.search == "grid" or self.count <= MOST_CHECKED
        """All of them were looked at."""
        self.legal: list[Values] = []
        self.alike: list[tuple[Values, Values]] = []
        self.refused: list[tuple[Values, str]] = []
        known: dict[str, Values] = {}
        for values in self._all(axes) if self.whole else self._some(axes):
            try:
                key = _identity(trial_config(config, values))
            except BadInput as error:
                self.refused.append((values, str(error)))
                continue
            if key in known:
                self.alike.append((values, known[key]))
            else:
                known[key] = values
                self.legal.append(values)
        self._check(axes)

    def _all(self, axes: Sequence[Axis]) -> Iterator[Values]:
        for chosen in itertools.product(*(axis.extremes for axis in axes)):
            yield {axis.name: value for axis, value in zip(axes, chosen, strict=True)}

    def _some(self, axes: Sequence[Axis]) -> Iterator[Values]:
        chance = random.Random(0)
        for _ in range(MOST_CHECKED):
            yield {axis.name: chance.choice(axis.extremes) for axis in axes}

    def _check(self, axes: Sequence[Axis]) -> None:
        """Refuse a space of which nothing, or a value of which never, can be trained."""
        usable = [*self.legal, *(values for values, _ in self.alike)]
        for axis in axes:
            for value in axis.extremes:
                if not any(values[axis.name] == value for values in usable):
                    why = next((w for v, w in self.refused if v[axis.name] == value), "")
                    if why:
                        raise BadInput(f"--space: {as_words({axis.name: value})} cannot be: {why}")

    def remarks(self) -> list[str]:
        """What is left out of a grid, and what a search may draw in vain."""
        found = []
        if self.refused:
            values, why = self.refused[0]
            found.append(
                f"{len(self.refused)} of {len(self.refused) + len(self.legal) + len(self.alike)} "
                f"combinations cannot be trained, such as {as_words(values)}: {why}"
            )
        if self.alike:
            one, other = self.alike[0]
            found.append(
                f"{len(self.alike)} combinations are the same training as another one: "
                f"{as_words(one)} as {as_words(other)}"
            )
        return found


def _identity(train: TrainConfig) -> str:
    """What makes a training unlike others: bands count, not what they are called.

    Raises BadInput where the bands cannot be, or the checkpoint does not fit the model.
    """
    bands = model_bands(train.stft, train.model)
    if train.checkpoint_fp and (
        misfit := _misfit(train.checkpoint_fp, train.transfer, train.bsrnn)
    ):
        raise BadInput(misfit)
    of_bands = ("band_schema", "divisions", "num_bands", "splits")
    assert set(of_bands) <= set(leaves(ModelConfig))
    options = {name: v for name, v in yaml_values(train).items() if name not in of_bands}
    return json.dumps([bands, options])


@functools.lru_cache
def _misfit(checkpoint: str, transfer: bool, bsrnn: BsrnnConfig) -> str:
    """Why a checkpoint is not of this model; nothing when it is. It is loaded once per model."""
    train = TrainConfig(
        part=bsrnn.stems,
        checkpoint_fp=checkpoint,
        transfer=transfer,
        stft=bsrnn.stft,
        model=bsrnn.model,
        crop_seconds=bsrnn.crop_seconds,
        chunk=ChunkConfig(chunk_size_in_seconds=bsrnn.crop_seconds),
    )
    try:
        initial_model(train)
    except BadInput as error:
        return str(error)
    return ""


def _drawn(config: TuneConfig, axes: Sequence[Axis]) -> list[Values]:
    """Different trials that can be trained, drawn with the sweep's seed."""
    chance = np.random.RandomState(config.train.seed)
    wanted = _samples(config)
    found: dict[str, Values] = {}
    for _ in range(TRIES_PER_SAMPLE * wanted):
        if len(found) == wanted:
            break
        values = {axis.name: axis.value(axis.domain.sample(random_state=chance)) for axis in axes}
        try:
            key = _identity(trial_config(config, values))
        except BadInput:
            continue
        found.setdefault(key, values)
    return list(found.values())


def datasets(config: TuneConfig, space: Plan) -> dict[str, PrepConfig]:
    """The datasets that trials are made on, by ``Plan.dataset``."""
    axes = varies_shards(space.axes)
    found: dict[str, PrepConfig] = {}
    for chosen in itertools.product(*(axis.values for axis in axes)):
        values = {axis.name: value for axis, value in zip(axes, chosen, strict=True)}
        if space.points is None or any(
            all(point[name] == value for name, value in values.items()) for point in space.points
        ):
            # What cannot be prepared is a combination that no trial can have.
            with contextlib.suppress(BadInput):
                found[space.dataset(values)] = with_values(config.trial.prep, values)
    return found
