"""Tables of options given on a command line or by a sweep: `--config.data.options="{'user': 'uid'}"`."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from llm4rec_jax.registry import unknown_name

# A table holds the options of what this key names; those of another do not go with it.
_NAMED_BY = {
    "data.options": "data.source",
    "data.split_options": "data.split",
    "baseline.options": "baseline.name",
    "generation.options": "generation.model",
    "model.head_options": "model.head",
    "model.project_options": "model.project",
}
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def merge_options(
    config: ConfigDict, key: str, given: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Merges options into the table that a configuration has, and says what that changes.

    An empty table empties it. Options of a source, split, baseline or head are dropped when `overrides` choose another.

    Args:
      config: configuration before the overrides.
      key: of a table of it, such as "data.options".
      given: options, by name.
      overrides: all overrides, by key.

    Returns:
      The table, and a sentence about what stood there before; "" when nothing did.

    Example:
      >>> config = ConfigDict({"data": {"source": "table", "options": {"user": "u", "sep": ","}}})
      >>> merge_options(config, "data.options", {"user": "uid"}, {})
      ({'sep': ',', 'user': 'uid'}, "config.data.options: user was 'u', is 'uid'; sep stays")
      >>> merge_options(config, "data.options", {}, {})
      ({}, 'config.data.options: sep, user dropped')
      >>> merge_options(config, "data.options", {"user": "uid"}, {"data.source": "jsonl"})
      ({'user': 'uid'}, "config.data.options: user was 'u', is 'uid'; sep dropped")
    """
    held = _lookup(config, key).to_dict()
    selector = _NAMED_BY.get(key, "")
    other = selector in overrides and str(overrides[selector]) != str(_lookup(config, selector))
    table = ConfigDict({} if other or not given else held)
    table.update(ConfigDict(dict(given)))
    merged = table.to_dict()
    same = [name for name in held if name in merged and merged[name] == held[name]]
    parts = [f"{name} was {held[name]!r}, is {merged[name]!r}" for name in held if name in merged and name not in same]
    if same:
        parts.append(f"{', '.join(same)} stay{'s' * (len(same) == 1)}")
    if dropped := [name for name in held if name not in merged]:
        parts.append(f"{', '.join(dropped)} dropped")
    return merged, f"config.{key}: {'; '.join(parts)}" if parts else ""


def merge_tables(config: ConfigDict, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns command line arguments whose tables of options are merged into those of the configuration, and notes.

    Example:
      >>> config = ConfigDict({"peft": {"options": {"lora": {"rank": 8, "alpha": 8.0}}}})
      >>> arguments, _ = merge_tables(config, ["--config.peft.options={'lora': {'rank': 4}}"])
      >>> arguments
      ["--config.peft.options={'lora': {'alpha': 8.0, 'rank': 4}}"]
    """
    found = [_OVERRIDE.fullmatch(argument) for argument in arguments]
    overrides = {match[1]: match[2] for match in found if match is not None}
    merged, notes, tables = [], [], config.copy_and_resolve_references()
    for argument, match in zip(arguments, found, strict=True):
        table = None if match is None else _lookup(tables, match[1])
        given = _literal(match[2]) if match is not None and isinstance(table, ConfigDict) else None
        if match is None or not isinstance(given, dict):
            merged.append(argument)
            continue
        value, note = merge_options(tables, match[1], given, overrides)
        parent, _, name = match[1].rpartition(".")
        with tables.unlocked():
            _lookup(tables, parent)[name] = ConfigDict(value)
        merged.append(f"--config.{match[1]}={value!r}")
        notes += [note] if note else []
    return merged, notes


def unknown_key(config: ConfigDict, arguments: Sequence[str]) -> str | None:
    """Returns the error for the first --config.KEY that the configuration does not have; None when it has all.

    Example:
      >>> unknown_key(ConfigDict({"train": {"steps": 1}}), ["--config.train.step=2"])
      "unknown key of config.train: 'step'; did you mean 'steps'? Choose from: steps"
    """
    for argument in arguments:
        if (given := _OVERRIDE.fullmatch(argument)) is None:
            continue
        table, keys = config, given[1].split(".")
        for depth, key in enumerate(keys):
            if not isinstance(table, ConfigDict):
                break
            if key not in table:
                where = ".".join(["config", *keys[:depth]])
                return unknown_name(f"key of {where}:", key, table.keys()) + _as_a_table(keys, given[2])
            table = table[key]
    return None


def _as_a_table(keys: Sequence[str], value: str | None) -> str:
    """Describes how to give an option that the file does not set: only its table is a key."""
    at = next((i for i, key in enumerate(keys) if key.endswith("options")), None)
    if at is None:
        return ""
    literal = "True" if value is None else repr(value) if _literal(value) is None else value
    for key in reversed(keys[at + 1 :]):
        literal = f"{{{key!r}: {literal}}}"
    table = ".".join(keys[: at + 1])
    return (
        f'. An option that the file does not set is given with its table: --config.{table}="{literal}", which leaves '
        "the others as they are"
    )


def _literal(text: str | None) -> Any:
    """The value of a Python literal; None for other text."""
    try:
        return ast.literal_eval(text or "None")
    except (SyntaxError, ValueError):
        return None


def _lookup(config: Any, key: str) -> Any:
    """Returns the value of a dotted key; None where the configuration has no such key."""
    for name in key.split(".") if key else ():
        config = config[name] if isinstance(config, ConfigDict) and name in config else None
    return config
