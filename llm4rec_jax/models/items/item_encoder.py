"""Item embeddings C_i from the features of items: their ids, their texts, and whatever a further feature reads."""

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

COMBINATIONS = ("sum", "concatenation")


class Feature(NamedTuple):
    """One feature of items.

    Attributes:
      name: Its name in the inputs of `ItemEncoder`: "text", "ids".
      layers: Modules that take the feature to [U, D], one after another. The parameters of each stand under its `name`,
        which no other layer of the item encoder has.
    """

    name: str
    layers: tuple[nn.Module, ...]


class ItemEncoder(nn.Module):
    """Item embeddings as the sum of features, or as a linear map of their concatenation.

    Attributes:
      features: The features, in the order of the sum or concatenation.
      width: Width D of item embeddings.
      combine: "sum" or "concatenation".

    Example:
      >>> text = Feature("text", (nn.Dense(4, name="project"),))
      >>> ids = Feature("ids", (IdTable(num_items=10, width=4, name="ids"),))
      >>> model = ItemEncoder((text, ids), width=4)
      >>> inputs = {"text": jnp.ones((3, 6)), "ids": jnp.array([7, 0, 2])}
      >>> params = model.init(jax.random.key(0), inputs)["params"]
      >>> sorted(params), model.apply({"params": params}, inputs).shape
      (['ids', 'project'], (3, 4))
    """

    features: tuple[Feature, ...]
    width: int
    combine: Literal["sum", "concatenation"] = "sum"

    # Flax: layers keep the names that they were made with, so parameter paths don't depend on their order.
    preserve_adopted_names: ClassVar[bool] = True

    @nn.compact
    def __call__(self, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """The features of U items, each [U, …], to item embeddings [U, D]."""
        encoded = []
        for feature in self.features:
            x = inputs[feature.name]
            for layer in feature.layers:
                x = layer(x)
            encoded.append(x)
        if self.combine == "concatenation":
            return nn.Dense(self.width, name="combine")(jnp.concatenate(encoded, axis=-1))
        return sum(encoded[1:], encoded[0])


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
