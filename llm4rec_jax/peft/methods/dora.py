"""DoRA: LoRA on the direction of a weight matrix, with its magnitude trained separately."""

import jax
import jax.numpy as jnp

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.methods.lora import drop, low_rank
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, replace_kernels, sites


@METHODS.register("dora", "Liu et al. 2024, arXiv 2402.09353")
def dora(rank: int = 8, alpha: float = 8.0, dropout: float = 0.0, target: str = r".*/(query|value)") -> Peft:
    """Weight-decomposed low-rank adaptation (equation 5).

        y = m / ‖W + s A B‖ ∘ (x W + s · dropout(x) A B) + bias,   s = alpha / rank

    ‖·‖ is the norm of each output column, held constant in the backward pass (section 4.3). m starts at ‖W‖ and B at
    zero, so training starts at the pretrained function.

    Choose it over LoRA at low ranks; a step costs slightly more.

    Args:
      rank, alpha, dropout, target: See `lora`.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {"attention": {"query": {"kernel": jnp.ones((4, 3))}}}
      >>> peft.create("dora").init(jax.random.key(0), params)["attention/query"]["magnitude"]
      Array([2., 2., 2.], dtype=float32)

    References:
      Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, 2024 (https://arxiv.org/abs/2402.09353).
    """
    draw = low_rank("dora", rank, dropout, target)
    scale = alpha / rank

    def norm(w: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        # Without forming AB: ‖W + sAB‖² = ‖W‖² + 2s ⟨W, AB⟩ + s² ‖AB‖², column by column.
        across = jnp.sum((w.T @ a).T * b, axis=0)
        squared = jnp.sum((a.T @ a @ b) * b, axis=0)
        # Rounding could take a column near zero below it.
        return jnp.sqrt(jnp.maximum(jnp.sum(w * w, axis=0) + scale * (2 * across + scale * squared), 1e-24))

    def init(key: jax.Array, params: Params) -> Delta:
        linear = sites(params, "kernel")
        return {
            site: {**ab, "magnitude": jnp.linalg.norm(jnp.asarray(linear[site]["kernel"]), axis=0)}
            for site, ab in draw(key, params).items()
        }

    def tap(delta: Delta, site: str, call: Call, *args: jax.Array) -> jax.Array:
        y = call(*args)
        if (w := delta.get(site)) is None:
            return y
        (x,) = args
        a, b = w["a"], w["b"]
        factor = w["magnitude"] / jax.lax.stop_gradient(norm(jnp.asarray(call.params["kernel"]), a, b))
        bias = call.params.get("bias", jnp.zeros(())).astype(y.dtype)
        branch = scale * (drop(call, x.astype(y.dtype), dropout) @ a.astype(y.dtype) @ b.astype(y.dtype))
        return factor.astype(y.dtype) * (y - bias + branch) + bias

    def merged(kernel: jax.Array, w: Params) -> jax.Array:
        return w["magnitude"] / norm(kernel, w["a"], w["b"]) * (kernel + scale * (w["a"] @ w["b"]))

    def merge(params: Params, delta: Delta) -> Params:
        return replace_kernels(params, delta, merged)

    return Peft(init, tap=tap, merge=merge, reads_weights=True)
