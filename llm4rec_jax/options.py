"""Typed, ranged fields of configuration dataclasses, checked when an object is made."""

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from typing import Any

from llm4rec_jax.registry import unknown_name


def option(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """Returns a dataclass field with a range.

    Args:
      default: Value of the field unless it is given.
      low, high: Least and greatest value, both allowed.
      above, below: Bounds that the value itself must not reach.
      choices: Names that are allowed; an error names the nearest.
    """
    limits = {"low": low, "high": high, "above": above, "below": below, "choices": choices}
    metadata = {name: limit for name, limit in limits.items() if limit is not None}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check(options: Any, table: str) -> None:
    """Checks every field of a dataclass object against its annotated type and its range.

    Args:
      options: Object of a dataclass whose fields are made by `option`.
      table: Name of the table, as error messages have it: "config.train".

    Raises:
      ValueError: A value has another type, is NaN, or lies outside its range. The message names the key.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Size:
      ...     width: int = option(64, low=1)
      >>> check(Size(0), "config.model")
      Traceback (most recent call last):
      ...
      ValueError: config.model.width is 0, must be at least 1
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), f"{table}.{field.name}"
        if not _has_type(value, hints[field.name]):
            raise ValueError(f"{name} is {value!r}, must be {_words(hints[field.name])}")
        if isinstance(value, str) and "choices" in field.metadata and value not in field.metadata["choices"]:
            raise ValueError(unknown_name(name, value, field.metadata["choices"]))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            _check_range(value, name, field.metadata)


def _check_range(value: float, name: str, limits: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, must be a finite number")
    for limit, holds, words in (
        ("low", lambda bound: value >= bound, "at least"),
        ("high", lambda bound: value <= bound, "at most"),
        ("above", lambda bound: value > bound, "greater than"),
        ("below", lambda bound: value < bound, "less than"),
    ):
        if limit in limits and not holds(limits[limit]):
            raise ValueError(f"{name} is {value}, must be {words} {limits[limit]}")


def _has_type(value: Any, hint: Any) -> bool:
    """Returns whether a value is of an annotated type; integers count as floats, and True is no number."""
    if hint is Any:
        return True
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_has_type(value, choice) for choice in typing.get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "True or False", type(None): "None"}
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return " or ".join(
        names.get(choice, getattr(typing.get_origin(choice) or choice, "__name__", str(choice))) for choice in choices
    )
