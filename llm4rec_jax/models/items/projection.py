"""Projections: vectors of any width to the width D of item embeddings."""

import flax.linen as nn
import jax

from llm4rec_jax.registry import Registry

PROJECTIONS: Registry = Registry("projection")


@PROJECTIONS.register("none")
class NoProjection(nn.Module):
    """The vectors as they are; D is their own width."""

    width: int

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


@PROJECTIONS.register("linear")
class LinearProjection(nn.Module):
    """One linear layer.

    Attributes:
      width: D.
      init_scale: Factor on the initial weights; scores begin near zero where it is small.
    """

    width: int
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.width, kernel_init=_scaled(self.init_scale), name="output")(x)


@PROJECTIONS.register("mlp")
class MlpProjection(nn.Module):
    """A norm, a hidden layer with GELU, and a linear layer. The norm gives vectors of every encoder the same scale.

    Attributes:
      width: D.
      hidden: Width of the hidden layer.
      dropout: Rate on the hidden layer, used when a dropout rng is given.
      init_scale: Factor on the initial weights of the last layer; scores begin near zero where it is small.
    """

    width: int
    hidden: int = 256
    dropout: float = 0.0
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.gelu(nn.Dense(self.hidden, name="hidden")(nn.LayerNorm(name="norm")(x)))
        x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
        return nn.Dense(self.width, kernel_init=_scaled(self.init_scale), name="output")(x)


def _scaled(factor: float) -> nn.initializers.Initializer:
    """Returns the initializer of a linear layer whose weights are multiplied by a factor."""
    return nn.initializers.variance_scaling(factor**2, "fan_in", "truncated_normal")
