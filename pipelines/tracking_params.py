"""What runs hold in the form that MLflow takes: names, parameters, values."""

import dataclasses
import json
import math
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

MAX_KEY_LENGTH = 250


def flatten(config: object) -> dict[str, str]:
    """A (nested) dataclass or mapping as flat text parameters, named as on the command line.

    A name that occurs twice in the nest keeps its whole path: ``optim.lr``.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    assert isinstance(config, Mapping), f"cannot flatten {type(config)}"
    leaves = dict(_leaves(config, ""))
    names = [path.rpartition(".")[2] for path in leaves]
    return {
        name if names.count(name) == 1 else path: as_text(value)
        for name, (path, value) in zip(names, leaves.items(), strict=True)
    }


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_text(value: object) -> str:
    """A parameter's value as MLflow shows it."""
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, default=str)
    return str(value)


def mlflow_key(name: str) -> str:
    """A name that MLflow accepts: a user's stem may hold any character."""
    return posixpath.normpath(re.sub(r"[^\w.\- :/]", "_", name)).strip("/.")[:MAX_KEY_LENGTH]


def recordable(metrics: Mapping[str, float]) -> dict[str, float]:
    """Keys that MLflow accepts; infinities as NaN, for the database would make 1.8e308 of them."""
    return {
        mlflow_key(key): value if math.isfinite(value) else math.nan
        for key, value in metrics.items()
    }
