"""Factors on the learning rate of each array: by part of the model, by depth in the encoder, and by regex."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax

from llm4rec_jax.training.config import PartRates
from llm4rec_jax.trees import flatten

# Names of parameters by the part of the model that they belong to.
_PARTS = {
    "encoder": ("encoder", "pooling"),
    "items": ("project", "ids", "tower", "feature", "fusion"),
    "users": ("users", "project_prompt", "profile"),
    "head": ("head", "answers"),
}


def rate_factors(
    trainable: Any,
    learning_rate: float | jax.Array = 1.0,
    *,
    rates: PartRates | None = None,
    layer_decay: float | None = None,
    scales: Mapping[str, float] | None = None,
) -> dict[str, float | jax.Array]:
    """Returns a factor on the learning rate by path, for the arrays that have one.

    A part's rate, the layer-wise decay and a regex's factor multiply. Layer-wise decay is that of ELECTRA and ULMFiT
    (Howard and Ruder 2018, arXiv 1801.06146): d^(n - l) for block l where block n is the highest that is trained, and
    d^(n + 1) for the embeddings.

    Args:
      trainable: {"delta": …, "params": …}, or the shapes of its arrays.
      learning_rate: Rate of the other arrays, above 0 where a part has its own.
      rates: Learning rates of parts.
      layer_decay: d, in (0, 1].
      scales: Factors by regex over paths such as "params/users/layer_0/ffn/up/kernel"; the first that matches in full
        decides.

    Raises:
      ValueError: A part, the decay or a regex concerns nothing that is trained.

    Example:
      >>> from jax import numpy as jnp
      >>> block = {f"layer_{i}/ffn/up": {"kernel": jnp.ones((2, 2))} for i in (4, 5)}
      >>> rate_factors({"delta": {"encoder": block}, "params": {}}, layer_decay=0.5)
      {'delta/encoder/layer_4/ffn/up/kernel': 0.5, 'delta/encoder/layer_5/ffn/up/kernel': 1.0}
    """
    names = list(flatten(trainable))
    factors: dict[str, float | jax.Array] = {}
    for part, rate in dataclasses.asdict(rates or PartRates()).items():
        if rate is not None:
            of_part = [name for name in names if _part(name) == part]
            if not of_part:
                raise ValueError(f"train.rates.{part}: no such part is trained; there are: {', '.join(names)}")
            factor: float = rate / learning_rate
            for name in of_part:
                factors[name] = factor
    if layer_decay is not None:
        depths = {name: depth for name in names if (depth := _depth(name)) is not None}
        if not depths:
            raise ValueError(f"train.layer_decay: no block is trained; there are: {', '.join(names)}")
        for name, depth in depths.items():
            factors[name] = factors.get(name, 1.0) * layer_decay ** (max(depths.values()) - depth)
    matched = {}
    for pattern, factor in (scales or {}).items():
        found = [name for name in names if re.fullmatch(pattern, name)]
        if not found:
            raise ValueError(f"learning rate of {pattern!r}: matches nothing trainable; there are: {', '.join(names)}")
        matched = {**dict.fromkeys(found, factor), **matched}
    return {**factors, **{name: factors.get(name, 1.0) * factor for name, factor in matched.items()}}


def _part(name: str) -> str | None:
    """Returns the part of a path: "encoder" for "delta/0/encoder/layer_1/…", "users" for "params/users/…"."""
    first = re.sub(r"^(delta|params)/(\d+/)*", "", name).split("/")[0].split(".")[0]
    first = "feature" if first.startswith("feature_") else first
    return next((part for part, holders in _PARTS.items() if first in holders), None)


def _depth(name: str) -> int | None:
    """Returns the block of the encoder that an array belongs to; -1 for the embeddings, None for other arrays."""
    if _part(name) != "encoder":
        return None
    block = re.search(r"/layer_(\d+)\b", name)
    return int(block[1]) if block else -1 if "/embeddings/" in name else None
