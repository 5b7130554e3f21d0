"""Configuration as frozen dataclasses: a YAML node is checked once, when it is read."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from lavis_itm_plugins.errors import ItmError, did_you_mean

Config = TypeVar("Config")


def setting(
    default: Any = dataclasses.MISSING,
    *,
    choices: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    help: str = "",
) -> Any:
    """A dataclass field with its range: `low`/`high` are allowed values, `above`/`below` are not.

    A list or dictionary given as the default is copied for each instance.
    """
    bounds = {"choices": choices, "low": low, "high": high, "above": above, "below": below, "help": help}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=bounds)
    return dataclasses.field(default=default, metadata=bounds)


def parse(cls: type[Config], node: Mapping[str, Any] | None, where: str, *, ignore: Sequence[str] = ()) -> Config:
    """Build the dataclass `cls` from a mapping; `where` names file and key in every error.

    Keys in `ignore` belong to somebody else (LAVIS) and are skipped. Raises ItmError for an unknown key, a missing
    one, a wrong type or a value out of range.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Loss:
    ...     margin: float = setting(0.2, low=0)
    >>> parse(Loss, {"margin": 1}, "a.yaml: model.loss")
    Loss(margin=1.0)
    >>> parse(Loss, {"marginn": 1}, "a.yaml: model.loss")
    Traceback (most recent call last):
    ...
    lavis_itm_plugins.errors.ItmError: a.yaml: model.loss.marginn: unknown key; did you mean margin?
    """
    if node is None:
        node = {}
    if not isinstance(node, Mapping):
        raise ItmError(f"{where}: expected a section of keys, got {node!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in node:
        if key not in fields and key not in ignore:
            raise ItmError(f"{where}.{key}: unknown key; {did_you_mean(str(key), fields)}")
    values = {}
    for name, field in fields.items():
        if name in node:
            values[name] = _convert(_value(node, name, where), hints[name], f"{where}.{name}")
            _check_range(values[name], field.metadata, f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ItmError(f"{where}.{name}: missing; {field.metadata.get('help') or 'give a value'}")
    try:
        return cls(**values)
    except ItmError as error:
        raise ItmError(f"{where}: {error}") from None


def _value(node: Mapping[str, Any], name: str, where: str) -> Any:
    try:
        return node[name]
    except ValueError as error:  # OmegaConf's, for a ${...} that leads nowhere
        raise ItmError(f"{where}.{name}: {str(error).splitlines()[0]}") from None


def _convert(value: Any, hint: Any, where: str) -> Any:
    """The value as the annotated type, or an error that says what was expected."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _convert_union(value, hint, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else parse(hint, value, where)
    if typing.get_origin(hint) in (list, tuple):
        return _convert_list(value, hint, where)
    if typing.get_origin(hint) is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise ItmError(f"{where}: expected a section of keys, got {value!r}")
        return dict(value)
    return _convert_plain(value, hint, where)


def _convert_union(value: Any, hint: Any, where: str) -> Any:
    options = typing.get_args(hint)
    if value is None and type(None) in options:
        return None
    failures = []
    for option in options:
        if option is not type(None):
            try:
                return _convert(value, option, where)
            except ItmError as error:
                failures.append(error)
    raise failures[-1]


def _convert_list(value: Any, hint: Any, where: str) -> Any:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ItmError(f"{where}: expected a list, got {value!r}")
    item_hint = typing.get_args(hint)[0]
    items = [_convert(item, item_hint, f"{where}[{i}]") for i, item in enumerate(value)]
    return items if typing.get_origin(hint) is list else tuple(items)


def _convert_plain(value: Any, hint: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _finite(value, where)
    if hint is float and (number := _number_in(value)) is not None:
        return _finite(number, where)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    words = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
    raise ItmError(f"{where}: expected {words.get(hint, hint.__name__)}, got {value!r}")


def _number_in(text: Any) -> float | None:
    """The number that a text holds, None when it holds none: YAML 1.1 reads 1e-3 as text."""
    try:
        return float(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _finite(value: float, where: str) -> float:
    # a whole number of YAML has no limit, a float has
    number = float(value) if abs(value) <= sys.float_info.max else math.inf
    if not math.isfinite(number):
        raise ItmError(f"{where}: expected a finite number, got {value!r}")
    return number


def _check_range(value: Any, bounds: Mapping[str, Any], where: str) -> None:
    if value is None:
        return
    for item in value if isinstance(value, (list, tuple)) else [value]:
        _check_one(item, bounds, where)


def _check_one(value: Any, bounds: Mapping[str, Any], where: str) -> None:
    choices = bounds.get("choices")
    if choices is not None and value not in choices:
        raise ItmError(f'{where}: unknown choice "{value}"; {did_you_mean(str(value), choices)}')
    tests = {
        "low": (lambda bound: value < bound, "at least"),
        "high": (lambda bound: value > bound, "at most"),
        "above": (lambda bound: value <= bound, "more than"),
        "below": (lambda bound: value >= bound, "less than"),
    }
    for name, (fails, words) in tests.items():
        bound = bounds.get(name)
        if bound is not None and isinstance(value, (int, float)) and fails(bound):
            raise ItmError(f"{where}: {value!r} is out of range; give a value of {words} {bound}")
