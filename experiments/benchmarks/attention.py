"""Attention alone: ours, the same as its equation stands, and torch's, which picks its own kernel."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import timing
from experiments.benchmarks.step import SHAPES
from llm4rec_jax.models.layers.attention import attend

HEADS, WIDTH = 12, 32


def run() -> Iterator[dict[str, Any]]:
    """Heads as MiniLM-L6 has them, every shape, forward alone and with the backward pass."""
    for texts, length in SHAPES:
        for backward in (False, True):
            yield measure(texts, length, backward)


def measure(texts: int, length: int, backward: bool, repeats: int = 20) -> dict[str, Any]:
    """Seconds of each side on the same float32 arrays, nothing masked."""
    import torch

    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(texts, length, HEADS, WIDTH)).astype(np.float32) for _ in range(3)]
    ours, equation = compiled(attend, backward), compiled(as_written, backward)
    allowed = np.ones((texts, 1, 1, length), bool)
    tensors = [torch.tensor(a.transpose(0, 2, 1, 3).copy(), requires_grad=backward) for a in arrays]

    def peer() -> None:
        with torch.set_grad_enabled(backward):
            out = torch.nn.functional.scaled_dot_product_attention(tensors[0], tensors[1], tensors[2])
        if backward:
            torch.autograd.grad(out.sum(), tensors)

    times = timing.interleaved(
        {
            "ours": lambda: jax.block_until_ready(ours(*arrays, allowed)),
            "equation": lambda: jax.block_until_ready(equation(*arrays, allowed)),
            "torch": peer,
        },
        repeats,
    )
    pairs = zip(ours(*arrays, allowed), equation(*arrays, allowed), strict=True)
    return {
        "texts": texts,
        "tokens": length,
        "backward": backward,
        **timing.summary(times),
        "largest_difference": max(float(jnp.abs(a - b).max()) for a, b in pairs),
    }


def compiled(function: Callable[..., jax.Array], backward: bool) -> Callable[..., tuple[jax.Array, ...]]:
    """(q, k, v, allowed) -> (states,), or the gradients of their sum by q, k and v."""
    if backward:
        return jax.jit(jax.grad(lambda *args: function(*args).sum(), argnums=(0, 1, 2)))
    return jax.jit(lambda *args: (function(*args),))


def as_written(q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √d) v, in that order, heads where they are."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(allowed, scores, jnp.finfo(scores.dtype).min))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
