"""Activation functions by the names that Hugging Face gives them."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) by erf, as torch computes it; jax's own takes erfc, which costs more than twice as much on a CPU."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


def quick_gelu(x: jax.Array) -> jax.Array:
    """x σ(1.702 x), CLIP's approximation of the GELU (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
