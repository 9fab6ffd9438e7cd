"""Every key of the schema takes the values of its type and range, and no others."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from llm4rec_jax.runs.run import assemble
from llm4rec_jax.runs.schema import Config, default_config, resolve

settings.register_profile("keys", settings.get_profile("same"), max_examples=8)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="="), min_size=1, max_size=12)
# Words have a meaning there.
PARSED = {
    "train.scales": st.sampled_from(["", ".*/query=2", "a=0 b=0.5"]),
    "train.item_micro_batch": st.integers(0, 10_000) | st.just("auto"),
}


class Key(NamedTuple):
    """A key of the schema: its path, types and limits."""

    path: str
    kinds: tuple[Any, ...]
    limits: Any


def keys(options: Any = None, before: str = "") -> Iterator[Key]:
    """Yields the keys of the schema and of its tables."""
    options = options or Config()
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        path, hint = before + field.name, hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from keys(getattr(options, field.name), f"{path}.")
        elif path != "train.seed":  # a key of the whole configuration
            union = typing.get_origin(hint) in (typing.Union, types.UnionType)
            kinds = typing.get_args(hint) if union else (hint,)
            yield Key(path, tuple(typing.get_origin(kind) or kind for kind in kinds), field.metadata)


KEYS = {key.path: key for key in keys()}


def right(key: Key) -> st.SearchStrategy[Any]:
    """Draws values of a key's types within its range."""
    if key.path in PARSED:
        return PARSED[key.path]
    limits, drawn = key.limits, []
    if int in key.kinds:
        low, high = limits.get("low", -100), limits.get("high", 10_000)
        # They are no longer than the run, whose length is 1,000 by default.
        within = {"train.warmup": 1000, "train.freeze_encoder_steps": 900}
        high = within.get(key.path, min(high, limits.get("below", 10_001) - 1))
        drawn.append(st.integers(low, high))
    if float in key.kinds:
        least = limits.get("low", limits.get("above", -1e6))
        most = limits.get("high", limits.get("below", 1e6))
        drawn.append(st.floats(least, most, exclude_min="above" in limits, exclude_max="below" in limits))
    if bool in key.kinds:
        drawn.append(st.booleans())
    if str in key.kinds:
        drawn.append(st.sampled_from(limits["choices"]) if "choices" in limits else TEXT)
    if dict in key.kinds:
        drawn.append(st.dictionaries(TEXT.map(lambda text: f"x_{text}".replace(".", "_")), st.integers(), max_size=2))
    if list in key.kinds:
        drawn.append(st.lists(TEXT, max_size=3))
    if types.NoneType in key.kinds:
        drawn.append(st.none())
    assert drawn, key
    return st.one_of(drawn)


def wrong(key: Key) -> st.SearchStrategy[Any]:
    """Draws values of other types, and numbers outside the range."""
    limits = key.limits
    numbers = int in key.kinds or float in key.kinds
    drawn: list[st.SearchStrategy[Any]] = []
    if str not in key.kinds:
        drawn.append(st.sampled_from(["1", "0.5", "None", "True", ""]))
    elif "choices" in limits:
        drawn.append(TEXT.filter(lambda text: text not in limits["choices"]))
    if list not in key.kinds:
        drawn.append(st.lists(st.integers(), max_size=2))
    if bool not in key.kinds:
        drawn.append(st.booleans())
    if numbers:
        drawn.append(st.sampled_from([float("nan"), float("inf"), float("-inf")]))
        if "low" in limits:
            drawn.append(st.integers(-(10**6), int(limits["low"]) - 1))
        if "below" in limits or "high" in limits:
            most = int(limits.get("below", limits.get("high", 0) + 1))
            drawn.append(st.integers(most, most + 10**6))
    else:
        drawn.append(st.one_of(st.integers(2, 9), st.floats(0.1, 0.9)))
    if int in key.kinds and float not in key.kinds:
        drawn.append(st.floats(1.1, 1.9))
    if types.NoneType not in key.kinds:
        drawn.append(st.none())
    return st.one_of(drawn)


def asked(path: str, value: Any) -> ConfigDict:
    """A configuration that gives one key."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return ConfigDict(value)


def test_the_keys_are_those_of_a_configuration():
    def flat(values: dict[str, Any], depth: int = 0, before: str = "") -> Iterator[str]:
        for name, value in values.items():
            table = isinstance(value, dict) and f"{before}{name}" not in KEYS
            yield from flat(value, depth + 1, f"{before}{name}.") if table else [f"{before}{name}"]

    assert set(flat(default_config().to_dict())) == set(KEYS)
    assert len(KEYS) > 60


@pytest.mark.parametrize("path", KEYS)
def test_values_of_the_type_and_range_are_taken(path):
    @settings(settings.get_profile("keys"), suppress_health_check=list(HealthCheck))
    @given(right(KEYS[path]))
    def taken(value: Any) -> None:
        held: Any = resolve(asked(path, value))
        for part in path.split("."):
            held = held[part]
        # A configuration keeps lists as tuples.
        given = tuple(value) if isinstance(value, list) else value
        assert (held.to_dict() if isinstance(held, ConfigDict) else held) == given

    taken()


@pytest.mark.parametrize("path", KEYS)
def test_other_values_are_refused_by_name(path):
    @settings(settings.get_profile("keys"), suppress_health_check=list(HealthCheck))
    @given(wrong(KEYS[path]))
    def refused(value: Any) -> None:
        with pytest.raises(ValueError, match=rf"config\.{path}\b"):
            resolve(asked(path, value))

    refused()


# --------------------------------------------------------------------------------------------------------------- fuzz
def anything() -> st.SearchStrategy[Any]:
    leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
    names = st.text("abcxyz_", min_size=1, max_size=8)
    return st.recursive(leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


def refusal(path: str, value: Any) -> str | None:
    """Returns why a value is not taken; None where it is."""
    try:
        assemble(asked(path, value))
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.long
def test_whatever_stands_under_five_hundred_keys_is_taken_or_refused_in_words():
    """Right keys, keys with a letter too much or too few, with values of any type and with those of other keys."""
    tally = {"taken": 0, "refused": 0}
    value = st.sampled_from(sorted(KEYS)).flatmap(lambda path: right(KEYS[path])) | anything()

    @settings(max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(KEYS)), st.sampled_from([0, 0, 0, 1, 2]), st.integers(0, 30), value)
    def tried(path: str, change: int, at: int, value: Any) -> None:
        at = min(at, len(path) - 1)
        path = [path, path[:at] + path[at + 1 :], path[:at] + "q" + path[at:]][change]
        if not all(path.split(".")) or path.endswith("imports"):  # a name of a module is imported
            return
        said = refusal(path, value)
        assert said is None or "config" in said or "unknown" in said, said
        tally["taken" if said is None else "refused"] += 1

    tried()
    print(tally)
    assert min(tally.values()) > 20
