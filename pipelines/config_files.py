"""Configurations as flat named values, and as YAML files that ``--config`` takes back.

A configuration is a dataclass that may hold others, one level or more. The fields at the ends are
its leaves; their names are unique over the whole tree, so that a name alone says which is meant.
"""

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import tyro
import yaml

from bsrnn_core.errors import BadInput
from data_prep.atomic import AtomicPath
from data_prep.storage import location

Config = TypeVar("Config")

RUN_CONFIG = "config.yaml"
"""The file in a run's folder that holds all its options."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One named value of a configuration."""

    path: tuple[str, ...]
    """The fields that lead to it; the last is its name."""
    owner: type
    """The dataclass that declares it."""
    kind: Any
    """Its annotation without ``Annotated``."""
    appends: bool
    """Its flag takes one element and may be repeated."""
    required: bool
    """It has no default."""
    default: Any
    """Its plain default, ``dataclasses.MISSING`` where it has none."""

    @property
    def is_list(self) -> bool:
        """Whether it holds a tuple."""
        return self.kind is tuple or get_origin(self.kind) is tuple

    @property
    def may_be_none(self) -> bool:
        """Whether None is a legal value."""
        unions = (typing.Union, types.UnionType)
        return get_origin(self.kind) in unions and type(None) in get_args(self.kind)


def leaves(config_class: type) -> dict[str, Leaf]:
    """The leaves of a configuration class by name, in the order of declaration."""
    found: dict[str, Leaf] = {}
    for leaf in _walk(config_class, ()):
        name = leaf.path[-1]
        assert name not in found, f"{config_class.__name__} has two fields called {name}"
        found[name] = leaf
    return found


def _walk(config_class: type, prefix: tuple[str, ...]) -> Iterable[Leaf]:
    hints = typing.get_type_hints(config_class, include_extras=True)
    for field in dataclasses.fields(config_class):
        kind, marks = hints[field.name], ()
        if get_origin(kind) is Annotated:
            kind, *marks = get_args(kind)
        path = (*prefix, field.name)
        if dataclasses.is_dataclass(kind):
            yield from _walk(typing.cast(type, kind), path)
        else:
            appends = any(mark is tyro.conf.UseAppendAction for mark in marks)
            required = has_no_default(field)
            yield Leaf(path, config_class, kind, appends, required, field.default)


def has_no_default(field: dataclasses.Field[Any]) -> bool:
    """Whether a dataclass cannot be made without a value for this field."""
    return field.default is field.default_factory is dataclasses.MISSING


def leaf_values(config: object) -> dict[str, Any]:
    """The values of a configuration's leaves by name."""
    values: dict[str, Any] = {}
    for name, leaf in leaves(type(config)).items():
        value: Any = config
        for step in leaf.path:
            value = getattr(value, step)
        values[name] = value
    return values


def yaml_values(config: object) -> dict[str, Any]:
    """The same values as ``read_yaml`` gives them back: tuples are lists."""
    return {name: _plain(value) for name, value in leaf_values(config).items()}


def changes(was: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """A clause for each of ``names`` whose two values differ: "lr is 0.1 and not 0.2" ..."""
    return [
        f"{name} is {was[name]} and not {now[name]}" for name in names if was[name] != now[name]
    ]


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of ``config`` in which the leaves named in ``values`` are changed, all at once.

    Raises BadInput where the configuration refuses the combination.
    """
    whole: Any = config
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(whole):
        value = getattr(whole, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = with_values(value, values)
        elif field.name in values:
            changes[field.name] = values[field.name]
    return dataclasses.replace(whole, **changes)


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A clause that names the known name most like ``name``, or nothing where none is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def save_yaml(config: object, path: str | os.PathLike[str]) -> None:
    """Write all values of a configuration, nested as its classes are; whole or not at all."""
    text = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
    with AtomicPath(Path(path)) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(element) for element in value]
    return value


def read_yaml(path: str | os.PathLike[str], config_class: type) -> dict[str, Any]:
    """The values by leaf name in a YAML file, whose mapping may be flat, nested, or both.

    A section may stand above its place, so that the options of a training are also those of what
    holds a training.

    Raises BadInput when the file cannot be read, is no mapping, or holds a name that
    ``config_class`` does not have in that place, or has one twice.
    """
    try:
        content = yaml.safe_load(location(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise BadInput(f"{path} cannot be read as a configuration: {reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f" (line {mark.line + 1})"
        raise BadInput(f"{path} is not valid YAML{place}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise BadInput(f"{path} must hold a mapping of option names to values")
    values: dict[str, Any] = {}
    _collect(content, (), leaves(config_class), values, str(path))
    return values


def _collect(
    mapping: dict[Any, Any],
    section: tuple[str, ...],
    known: dict[str, Leaf],
    values: dict[str, Any],
    file: str,
) -> None:
    """Add the leaves of ``mapping``, which stands at ``section``, to ``values``."""
    depth = len(section)
    below = {name: leaf for name, leaf in known.items() if leaf.path[:depth] == section}
    sections = {
        step: leaf.path[: place + 1]
        for leaf in below.values()
        for place, step in enumerate(leaf.path[:-1])
        if place >= depth
    }
    for key, value in mapping.items():
        if key in sections and isinstance(value, dict):
            _collect(value, sections[key], known, values, file)
        elif key in sections and key not in below:
            raise BadInput(f"{file}: {key} must be a mapping of option names to values")
        elif key not in below:
            where = f" under {'.'.join(section)}" if section else ""
            hint = nearest(str(key), [*below, *sections])
            raise BadInput(f"{file}: there is no option {key}{where}{hint}")
        elif key in values:
            raise BadInput(f"{file}: {key} is given twice; keep one")
        else:
            check_form(value, key, below[key], file)
            values[key] = value


def check_form(value: Any, name: str, leaf: Leaf, file: str) -> None:
    """Refuse what the command line could not have said; its values are judged by tyro.

    Raises BadInput, which names ``file``.
    """
    if isinstance(value, dict):
        raise BadInput(f"{file}: {name} takes a value, not a mapping")
    if isinstance(value, list) != leaf.is_list:
        wanted = "a list" if leaf.is_list else "one value, not a list"
        raise BadInput(f"{file}: {name} takes {wanted}")
    if isinstance(value, bool) != (leaf.kind is bool):
        wanted = "true or false" if leaf.kind is bool else "a value other than true or false"
        raise BadInput(f"{file}: {name} takes {wanted}, not {value}")
    if value is None and not leaf.may_be_none:
        raise BadInput(f"{file}: {name} has no value")
