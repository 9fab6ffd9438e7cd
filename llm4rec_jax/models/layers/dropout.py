"""Dropout that is on exactly when the caller gave a `dropout` rng."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def dropout(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
    """Zeroes entries of x with probability `rate` and scales the others by 1 / (1 − rate).

    Args:
      module: the bound module that calls; without a `dropout` rng there, x is returned as it is.
      x: array of any shape.
      rate: probability in [0, 1).
    """
    if rate == 0.0 or not module.has_rng("dropout"):
        return x
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
