"""Reads, writes and refuses fields of `config.json`, as all families do."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from llm4rec_jax.models.encoders.base import OURS, EncoderConfig


def config_fields(kind: type[EncoderConfig], raw: Mapping[str, Any], **renamed: str) -> dict[str, Any]:
    """The fields of a `config.json` that a configuration has, each of the type of its default.

    Args:
      kind: Class of the configuration.
      raw: Fields of `config.json`.
      **renamed: Names in `config.json` by the configuration's name, where they differ: `hidden_size="n_embd"`. "" is
        for a field that `config.json` has no say in.

    Raises:
      ValueError: a field is of another type.

    Example:
      >>> config_fields(EncoderConfig, {"n_embd": 8, "vocab_size": 5, "other": 1}, hidden_size="n_embd")
      {'vocab_size': 5, 'hidden_size': 8}
    """
    found = {}
    for field in dataclasses.fields(kind):
        name = renamed.get(field.name, field.name)
        if field.name in OURS or not name or name not in raw:
            continue
        value, wanted = raw[name], type(field.default)
        if value is None and "None" in str(field.type):
            found[field.name] = None
            continue
        accepted = (int, float) if wanted is float else wanted
        if wanted is not type(None) and (
            not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool)
        ):
            raise ValueError(f"{name} is {value!r}, must be of type {wanted.__name__}")
        found[field.name] = value
    return found


def fields_to_hf(config: EncoderConfig, architecture: str, **renamed: str) -> dict[str, Any]:
    """The fields of a `config.json`, the inverse of `config_fields`.

    Args:
      config: The configuration.
      architecture: Name of the class in transformers.
      **renamed: Names in `config.json`, as in `config_fields`.

    Example:
      >>> fields_to_hf(EncoderConfig(vocab_size=5), "GPT2Model", hidden_size="n_embd")["n_embd"]
      768
    """
    fields = {renamed.get(n, n): value for n, value in dataclasses.asdict(config).items() if n not in OURS}
    return {"architectures": [architecture], **{name: value for name, value in fields.items() if name}}


def refuse(raw: Mapping[str, Any], **supported: Any) -> None:
    """Checks fields that have one supported value.

    Raises:
      ValueError: a field is there with another value, neither None nor the one given.

    Example:
      >>> refuse({"do_layer_norm_before": True}, do_layer_norm_before=True)
    """
    for name, value in supported.items():
        if raw.get(name) is not None and raw[name] != value:
            raise ValueError(f"{name} is {raw[name]!r}, but only {value!r} is supported")
