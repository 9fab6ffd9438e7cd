"""Root-mean-square normalisation, as decoders use it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · w over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467).

    Statistics are taken in float32 whatever the dtype of x.

    Attributes:
      epsilon: ε.
      dtype: dtype of the output.
      offset: Gemma's form: the weight is 1 + w, w starts at 0, and the product is rounded to `dtype` after it.
        Otherwise, as in Llama, w starts at 1 and the normalised states are rounded before it.

    Example:
      >>> RMSNorm().apply({"params": {"scale": jnp.ones(2)}}, jnp.array([3.0, -3.0])).round(3).tolist()
      [1.0, -1.0]
    """

    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    offset: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        start = nn.initializers.zeros_init() if self.offset else nn.initializers.ones_init()
        scale = self.param("scale", start, x.shape[-1:])
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        if self.offset:
            return (x * (1.0 + scale)).astype(self.dtype)
        return x.astype(self.dtype) * scale.astype(self.dtype)
