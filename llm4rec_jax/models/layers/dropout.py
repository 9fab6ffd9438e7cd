"""Dropout that is on exactly when the caller gave a `dropout` rng."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def dropout(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
    """Sets a share `rate` of the values of x to zero and scales the others, when the module has a `dropout` rng."""
    if rate == 0.0 or not module.has_rng("dropout"):
        return x
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
