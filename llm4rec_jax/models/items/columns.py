"""Layers that take a column of numbers, categories or vectors to width D, one class each."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.data.features.columns import Column
from llm4rec_jax.models.items.fusion import States
from llm4rec_jax.models.items.projection import PROJECTIONS
from llm4rec_jax.registry import Registry

COLUMN_LAYERS: Registry = Registry("layer of a feature")


class ColumnLayer(nn.Module):
    """Base of the layers that read a column.

    Attributes:
      width: D.
    """

    width: int

    def __call__(self, column: Column) -> jax.Array | States:
        """A column of U rows, [U, …], to vectors [U, D]. Nothing reads the vectors of rows that are not present."""
        raise NotImplementedError


@COLUMN_LAYERS.register("linear")
class LinearColumn(ColumnLayer):
    """A linear map of a number and the flag that says whether it is missing."""

    @nn.compact
    def __call__(self, column: Column) -> jax.Array:
        return nn.Dense(self.width, name="output")(column.values)


@COLUMN_LAYERS.register("piecewise_linear")
class PiecewiseLinear(ColumnLayer):
    """The piecewise linear encoding of Gorishniy et al. 2022 (arXiv 2203.05556, equation 1) and a linear map.

    A number in bin t is 1 in every bin below, the share of bin t that it has passed there, and 0 above. The first and
    the last bin are open: numbers beyond their edges go below 0 and above 1.

    Attributes:
      edges: Edges of the T bins, T + 1 ascending numbers.
    """

    edges: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, column: Column) -> jax.Array:
        values = jnp.asarray(column.values)
        number, missing = values[..., :1], values[..., 1:]
        edges = jnp.asarray(self.edges, values.dtype)
        share = (number - edges[:-1]) / jnp.diff(edges)
        bins = len(self.edges) - 1
        lowest = jnp.where(jnp.arange(bins) == 0, -jnp.inf, 0.0)
        highest = jnp.where(jnp.arange(bins) == bins - 1, jnp.inf, 1.0)
        encoded = jnp.clip(share, lowest, highest) * (1 - missing)
        return nn.Dense(self.width, name="output")(jnp.concatenate([encoded, missing], axis=-1))


@COLUMN_LAYERS.register("periodic")
class Periodic(ColumnLayer):
    """Sines and cosines of trained frequencies, a linear map and a ReLU: "PLR" of Gorishniy et al. 2022.

    Attributes:
      frequencies: Number of frequencies.
      scale: Standard deviation of the initial frequencies.
    """

    frequencies: int = 16
    scale: float = 0.5

    @nn.compact
    def __call__(self, column: Column) -> jax.Array:
        values = jnp.asarray(column.values)
        number, missing = values[..., :1], values[..., 1:]
        init = nn.initializers.normal(self.scale)
        angle = 2 * jnp.pi * number * jnp.asarray(self.param("frequencies", init, (self.frequencies,)))
        encoded = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1) * (1 - missing)
        return nn.relu(nn.Dense(self.width, name="output")(jnp.concatenate([encoded, missing], axis=-1)))


@COLUMN_LAYERS.register("bag")
class Bag(ColumnLayer):
    """The mean of the vectors of a row's categories; -1 stands for no category.

    Attributes:
      size: Number of categories, the one of unseen values among them.
    """

    size: int = 1

    @nn.compact
    def __call__(self, column: Column) -> jax.Array:
        table = self.param("embedding", nn.initializers.normal(0.02), (self.size, self.width))
        values = jnp.asarray(column.values)
        there = (values >= 0).astype(jnp.float32)
        total = (jnp.take(jnp.asarray(table), jnp.maximum(values, 0), axis=0) * there[..., None]).sum(-2)
        return total / jnp.maximum(there.sum(-1, keepdims=True), 1.0)


@COLUMN_LAYERS.register("projection")
class ProjectedVectors(ColumnLayer):
    """A projection of vectors that came from a file.

    Attributes:
      project: Name in `PROJECTIONS`.
    """

    project: str = "linear"

    @nn.compact
    def __call__(self, column: Column) -> jax.Array:
        return PROJECTIONS.lookup(self.project)(self.width, name="output")(jnp.asarray(column.values))


@COLUMN_LAYERS.register("states")
class HiddenStates(ColumnLayer):
    """Hidden states of several layers as they are, for a fusion that reads them."""

    def __call__(self, column: Column) -> States:
        """A column [U, K, W] to the states of K layers."""
        return States(jnp.asarray(column.values))
