"""What a sweep varies, as it is written on the command line.

--space "feature_dim=[32,64,128]" "lr=loguniform(1e-4,3e-3)" "band_schema=[v7,generic]"
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import yaml
from ray import tune

from bsrnn_core.errors import BadInput
from data_prep.config import PrepConfig
from pipelines.config import TrainConfig
from pipelines.config_files import leaves, nearest
from pipelines.flags import typed_value

DISTRIBUTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "uniform": tune.uniform,
    "loguniform": tune.loguniform,
    "randint": tune.randint,
    "lograndint": tune.lograndint,
}
"""Ray Tune's, of a lower and an upper end; those of whole numbers leave the upper end out."""
WHOLE = ("randint", "lograndint")
"""Those that draw whole numbers."""
OF_THE_SWEEP = (
    *("name", "part", "out", "experiment", "resume", "transfer", "shards", "musdbhq_location"),
    *("stem_names", "device", "num_workers", "threads_per_worker", "max_failures"),
    *("checkpoint_fp", "stall_seconds", "wait_minutes"),
)
"""Options that all trials share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One option and the values that it may take: a list, or a distribution between two ends."""

    name: str
    values: tuple[Any, ...] = ()
    """Of a list, in its order."""
    distribution: str = ""
    """A name of ``DISTRIBUTIONS``; empty for a list."""
    ends: tuple[Any, ...] = ()
    """Of a distribution: the lower and the upper one."""

    @property
    def is_list(self) -> bool:
        """Whether its values can be gone through."""
        return not self.distribution

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values of a list, or the ends: what is legal between them follows."""
        return self.values or self.ends

    @property
    def domain(self) -> Any:
        """What Ray Tune draws from: of a list the position, for its values may be anything."""
        if self.is_list:
            return tune.choice(list(range(len(self.values))))
        return DISTRIBUTIONS[self.distribution](*self.ends)

    def value(self, drawn: Any) -> Any:
        """The option's value for what was drawn from ``domain``."""
        if self.is_list:
            return self.values[int(drawn)]
        return int(drawn) if self.distribution in WHOLE else float(drawn)

    def drawn(self, value: Any) -> Any:
        """The inverse of ``value``, also of what JSON made of the value."""
        if not self.is_list:
            return value
        return [json.dumps(known) for known in self.values].index(json.dumps(value))


def parse_space(texts: Sequence[str]) -> tuple[Axis, ...]:
    """The axes that ``texts`` name. Raises BadInput, naming the text, for anything wrong."""
    if not texts:
        raise BadInput('say what to vary, as in --space "feature_dim=[32,64]" "lr=[1e-3,3e-3]"')
    axes = tuple(parse_axis(text) for text in texts)
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"--space names {name} twice")
    return axes


def parse_axis(text: str) -> Axis:
    """One axis, such as "lr=loguniform(1e-4,3e-3)". Raises BadInput for anything wrong."""
    name, _, said = (part.strip() for part in text.partition("="))
    call = re.fullmatch(r"(\w+)\((.*)\)", said, re.DOTALL)
    if not name.isidentifier() or not (call or said.startswith("[")):
        known = ", ".join(f"{kind}(LOW,HIGH)" for kind in DISTRIBUTIONS)
        raise BadInput(f"--space {text!r} must read NAME=[VALUE,VALUE,...] or NAME= one of {known}")
    _check_name(name)
    if call:
        return _distribution(name, call[1], call[2], text)
    try:
        values = yaml.safe_load(said)
    except yaml.YAMLError as error:
        raise BadInput(f"--space {text!r} is no list of values") from error
    if not isinstance(values, list) or not values:
        raise BadInput(f"--space {text!r} must list at least one value")
    typed = tuple(typed_value(TrainConfig, name, value, "--space") for value in values)
    if any(typed.count(value) > 1 for value in typed):
        raise BadInput(f"--space {text!r} lists a value twice")
    return Axis(name=name, values=typed)


def _check_name(name: str) -> None:
    known = leaves(TrainConfig)
    if name not in known:
        raise BadInput(f"--space: there is no option {name}{nearest(name, known)}")
    if name in OF_THE_SWEEP:
        raise BadInput(f"--space: all trials of a sweep share {name}; give it as --{name}")


def _distribution(name: str, kind: str, between: str, text: str) -> Axis:
    if kind not in DISTRIBUTIONS:
        hint = nearest(kind, DISTRIBUTIONS) or f"; there are {', '.join(DISTRIBUTIONS)}"
        raise BadInput(f"--space {text!r}: there is no distribution {kind}{hint}")
    try:
        low, high = (float(end) for end in between.split(","))
    except ValueError as error:
        raise BadInput(f"--space {text!r}: {kind} takes two numbers, (LOW,HIGH)") from error
    annotation = leaves(TrainConfig)[name].kind
    kinds = get_args(annotation) or (annotation,)
    if float not in kinds and (int not in kinds or kind not in WHOLE):
        instead = "randint or lograndint" if int in kinds else "a list"
        raise BadInput(f"--space {text!r}: {kind} does not suit {name}, use {instead}")
    if not low < high or (kind.startswith("log") and low <= 0):
        positive = " above 0" if kind.startswith("log") else ""
        raise BadInput(f"--space {text!r}: the ends must be rising numbers{positive}")
    if kind in WHOLE:
        if not low.is_integer() or not high.is_integer():
            raise BadInput(f"--space {text!r}: {kind} takes whole numbers")
        return Axis(name=name, distribution=kind, ends=(int(low), int(high)))
    return Axis(name=name, distribution=kind, ends=(low, high))


def varies_shards(axes: Iterable[Axis]) -> list[Axis]:
    """The axes along which trials need other shards."""
    of_shards = leaves(PrepConfig)
    return [axis for axis in axes if axis.name in of_shards]


def as_words(values: Mapping[str, Any]) -> str:
    """Values as people read them: "feature_dim 32, lr 0.001"."""
    return ", ".join(f"{name} {as_word(value)}" for name, value in values.items())


def as_word(value: object) -> str:
    """One value, numbers with four digits that count."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
