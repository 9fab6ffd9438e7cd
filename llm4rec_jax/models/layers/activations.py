"""Activation functions by the names that Hugging Face configs use."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """Returns x Φ(x), with Φ by erf as torch computes it: jax's own takes erfc, twice as slow on a CPU.

    Example:
      >>> float(gelu(jnp.float32(0.0)))
      0.0
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
