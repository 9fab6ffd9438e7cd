"""The features of items and users that a configuration names, beside text and ids."""

import dataclasses
from typing import Any

import numpy as np
import polars as pl

from llm4rec_jax import sharding
from llm4rec_jax.data.features import categorical, numeric, vectors  # noqa: F401  (they register themselves)
from llm4rec_jax.data.features.columns import Columns, FittedFeature, Rows, fit
from llm4rec_jax.data.splits.split import Split
from llm4rec_jax.inference import image_vectors, text_states  # noqa: F401  (they register themselves)
from llm4rec_jax.models.items.item_encoder import FeatureSet
from llm4rec_jax.options import option
from llm4rec_jax.registry import unknown_name

OWN_INPUTS = ("text", "id")
"""Inputs that are no feature of a table."""


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """Features of items and users beside text and ids."""

    item_options: dict[str, Any] = option({})
    """Options of the features that `inputs` names, by name: `kind`, and the options of that kind."""
    users: str | None = option(None)
    """Names of features of users, joined by "+"; None has none."""
    user_options: dict[str, Any] = option({})
    """Options of the features of users, by name."""
    fusion: str | None = option(None)
    """How the features of an item make one embedding; see `models.items.fusion.FUSIONS`. None takes "sum"."""
    fusion_options: dict[str, Any] = option({})
    """Options of the fusion."""
    user_fusion: str | None = option(None)
    """How user embeddings and the features of users make one embedding; None takes "sum"."""
    user_fusion_options: dict[str, Any] = option({})
    """Options of the fusion for users."""
    dropout: float | None = option(None, low=0.0, below=1.0)
    """Probability that training masks a feature of an item or user; None masks none."""
    graph_options: dict[str, Any] = option({})
    """Knowledge graph that a graph encoder of users smooths over too: `path`, `links` and `movies_path`."""


def fit_features(config: Any, split: Split) -> FeatureSet | None:
    """Fits the features that a configuration names to the training data.

    Returns:
      The features and their fusion; None where the configuration asks for nothing beyond a sum of text and ids.

    Raises:
      ValueError: A name, kind or option does not exist; the message names it.
      DataError: The values cannot be read.
    """
    chosen, dataset, data = config.features, split.dataset, split.dataset.interactions
    item_names, user_names = feature_names(config)
    users = dataset.users
    if user_names:
        stranger = pl.DataFrame([pl.Series(name, [None], dtype) for name, dtype in users.schema.items()])
        users = pl.concat([users, stranger])

    def fitted(key: str, table: pl.DataFrame, trained: np.ndarray, names: list[str]) -> dict[str, FittedFeature]:
        kind, options = key.split("_")[0], chosen[key]
        for name in options:
            if name not in names:
                raise ValueError(unknown_name(f"feature in config.features.{key}:", name, names))
        if not names:
            return {}
        rows = Rows(table, np.isin(np.arange(len(table)), trained), kind)
        return {name: fit(rows, name, dict(options.get(name, {}))) for name in names}

    features = FeatureSet(
        fitted("item_options", dataset.items, data.item[split.train], item_names),
        fitted("user_options", users, data.user[split.train], user_names),
        chosen.fusion or "sum",
        chosen.user_fusion or "sum",
        dict(chosen.fusion_options),
        dict(chosen.user_fusion_options),
        chosen.dropout or 0.0,
    )
    return None if features == FeatureSet() else features


def feature_names(config: Any) -> tuple[list[str], list[str]]:
    """Returns the names of the features of items, beside text and ids, and of users.

    Raises:
      ValueError: There is no input at all, or a name is not one of a feature or stands there twice.
    """
    inputs = _names(config.inputs, "config.inputs")
    if not inputs:
        raise ValueError("config.inputs is empty: give text, id, names of features, or several of these joined by '+'")
    return [name for name in inputs if name not in OWN_INPUTS], _names(
        config.features.users or "", "config.features.users"
    )


def columns_of(features: FeatureSet | None) -> Columns | None:
    """Returns the values of the features."""
    if features is None:
        return None
    return Columns(
        *({name: each.column for name, each in fitted.items()} for fitted in (features.items, features.users))
    )


def digest_of(features: FeatureSet | None) -> dict[str, str]:
    """Returns a hash of the values of the features, which may come from files beside the data."""
    return {} if features is None else {"features": sharding.digest(columns_of(features))}


def fitted_of(features: FeatureSet | None) -> dict[str, Any]:
    """Returns what was learnt from the training data, for dataset.json."""
    if features is None:
        return {}
    held = {"item_features": features.items, "user_features": features.users}
    return {key: {name: dict(each.fitted) for name, each in fitted.items()} for key, fitted in held.items()}


def _names(joined: str, key: str) -> list[str]:
    """Returns the names in "a+b"."""
    names = joined.split("+") if joined else []
    for name in names:
        if not name.isidentifier():
            raise ValueError(
                f"{key} is {joined!r}, and {name!r} in it is no name of a feature: join names of letters, digits and _ "
                "by '+', and give a column of another name as the option column of its feature"
            )
        if names.count(name) > 1:
            raise ValueError(f"{key} is {joined!r}, which names {name!r} twice: name each feature once")
    return names
