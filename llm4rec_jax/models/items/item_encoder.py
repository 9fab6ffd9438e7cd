"""Item embeddings C_i from the features of items: their ids, their texts, and whatever a further feature reads."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.data.features.columns import Column, FittedFeature
from llm4rec_jax.models.items import iisan  # noqa: F401  (it registers itself)
from llm4rec_jax.models.items.columns import COLUMN_LAYERS
from llm4rec_jax.models.items.fusion import FUSIONS, Fusion, States


class Feature(NamedTuple):
    """One feature of items or users.

    Attributes:
      name: Its name in the inputs of `FeatureEncoder`: "text", "ids", "year".
      layers: Modules that take the feature to [U, D], one after another. The parameters of each stand under its `name`,
        which no other layer of the encoder has.
      example: Shapes and types of two rows of the feature, for a feature that is a `Column`.
    """

    name: str
    layers: tuple[nn.Module, ...]
    example: Any = None


class FeatureEncoder(nn.Module):
    """Embeddings of items, or of users, fused from their features.

    Attributes:
      features: The features, in the order of the fusion.
      width: Width D of embeddings.
      fusion: How features make one embedding.
      dropout: Probability that training masks a feature of a row, used when a dropout rng is given. A row keeps its
        features where all of them would be masked.

    Example:
      >>> text = Feature("text", (nn.Dense(4, name="project"),))
      >>> ids = Feature("ids", (IdTable(num_items=10, width=4, name="ids"),))
      >>> model = FeatureEncoder((text, ids), 4, FUSIONS.build("sum", width=4))
      >>> inputs = {"text": jnp.ones((3, 6)), "ids": jnp.array([7, 0, 2])}
      >>> params = model.init(jax.random.key(0), inputs)["params"]
      >>> sorted(params), model.apply({"params": params}, inputs).shape
      (['ids', 'project'], (3, 4))
    """

    features: tuple[Feature, ...]
    width: int
    fusion: Fusion
    dropout: float = 0.0

    # Flax: layers keep the names that they were made with, so parameter paths don't depend on their order.
    preserve_adopted_names: ClassVar[bool] = True

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any]) -> jax.Array:
        """The features of U rows, each [U, …], to embeddings [U, D]."""
        parts: list[Any] = []  # `States` where a feature has them, which `iisan` alone reads
        masks = []
        for feature in self.features:
            x = inputs[feature.name]
            masks.append(x.present if isinstance(x, Column) else None)
            for layer in feature.layers:
                x = layer(x)
            parts.append(x)
        drops = self.dropout > 0 and self.has_rng("dropout")
        if not drops and all(mask is None for mask in masks):
            return self.fusion(parts, None)
        rows = jnp.broadcast_shapes(*map(_rows, parts))
        parts = [_to_rows(part, rows) for part in parts]
        present = jnp.stack([jnp.broadcast_to(True if mask is None else mask, rows) for mask in masks], axis=-1)
        if drops:
            kept = present & ~jax.random.bernoulli(self.make_rng("dropout"), self.dropout, present.shape)
            present = jnp.where(kept.any(-1, keepdims=True), kept, present)
        return self.fusion(parts, present)

    def example(self) -> dict[str, Any]:
        """Returns zeros of two rows for the features that are columns."""
        columns = {feature.name: feature.example for feature in self.features if feature.example is not None}
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), columns)


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features beside text and ids, and how features are fused.

    Attributes:
      items: Fitted features of items by name.
      users: Fitted features of users by name; they are fused with what the user encoder gives.
      fusion: Name in `FUSIONS` for the features of items, text and ids among them.
      user_fusion: Name in `FUSIONS` for user embeddings and the features of users.
      fusion_options, user_fusion_options: Options of the fusions.
      dropout: Probability that training masks a feature of an item or user.
    """

    items: Mapping[str, FittedFeature] = dataclasses.field(default_factory=dict)
    users: Mapping[str, FittedFeature] = dataclasses.field(default_factory=dict)
    fusion: str = "sum"
    user_fusion: str = "sum"
    fusion_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    user_fusion_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dropout: float = 0.0

    def of_items(self, features: tuple[Feature, ...], width: int) -> FeatureEncoder:
        """Returns the encoder of items from their text and ids and the features here."""
        fusion = _fusion(self.fusion, self.fusion_options, width, self.items)
        return FeatureEncoder((*features, *_columns(self.items, width, "feature_")), width, fusion, self.dropout)

    def of_users(self, width: int) -> FeatureEncoder | None:
        """Returns the encoder that fuses the user encoder's output, "history", with features; None without any."""
        if not self.users:
            return None
        fusion = _fusion(self.user_fusion, self.user_fusion_options, width, self.users)
        return FeatureEncoder((Feature("history", ()), *_columns(self.users, width)), width, fusion, self.dropout)


def _fusion(name: str, options: Mapping[str, Any], width: int, fitted: Mapping[str, FittedFeature]) -> Fusion:
    """Returns the fusion of a name, which fits the features: some read vectors, others hidden states."""
    fusion: Fusion = FUSIONS.build(name, width=width, **options)
    stacks = [feature for feature, held in fitted.items() if held.layer == "states"]
    if stacks and not fusion.reads_states:
        able = " or ".join(known for known, made in FUSIONS.items() if made.reads_states)
        raise ValueError(
            f"the fusion {name!r} reads one vector of a feature, and {', '.join(stacks)} has hidden states of several "
            f"layers: give the fusion {able}, or a kind of feature without the option layers"
        )
    if fusion.reads_states and not stacks:
        raise ValueError(
            f"the fusion {name!r} reads hidden states, and none of the features has any: give a feature of the kind "
            "text_states, or images with the option layers"
        )
    return fusion


def _rows(part: jax.Array | States) -> tuple[int, ...]:
    """Returns the shape of the rows of a feature, without the axes of each row's values."""
    return part.values.shape[:-2] if isinstance(part, States) else part.shape[:-1]


def _to_rows(part: jax.Array | States, rows: tuple[int, ...]) -> jax.Array | States:
    """Returns a feature with its rows repeated to a shape."""
    if isinstance(part, States):
        return States(jnp.broadcast_to(part.values, (*rows, *part.values.shape[-2:])))
    return jnp.broadcast_to(part, (*rows, part.shape[-1]))


def _columns(fitted: Mapping[str, FittedFeature], width: int, prefix: str = "") -> tuple[Feature, ...]:
    """Returns the features that read fitted columns; the names of their parameters begin with `prefix`."""
    features = []
    for name, feature in fitted.items():
        layer = COLUMN_LAYERS.build(feature.layer, width=width, **feature.layer_options).clone(name=prefix + name)
        example = jax.tree.map(lambda array: jax.ShapeDtypeStruct((2, *array.shape[1:]), array.dtype), feature.column)
        features.append(Feature(name, (layer,), example))
    return tuple(features)


class IdTable(nn.Module):
    """A trained vector for each item.

    Attributes:
      num_items: I.
      width: D.
    """

    num_items: int
    width: int

    @nn.compact
    def __call__(self, items: jax.Array) -> jax.Array:
        """Item rows [U] to [U, D]. Vectors [U, D] that were looked up before pass unchanged, without the table."""
        if jnp.issubdtype(items.dtype, jnp.floating):
            return items
        table = self.param("embedding", nn.initializers.normal(0.02), (self.num_items, self.width))
        return jnp.take(jnp.asarray(table), items, axis=0)
