"""DoRA: LoRA on a weight's direction, with its magnitude trained apart."""

import jax
import jax.numpy as jnp

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.methods.lora import drop, low_rank
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, replace, sites


@METHODS.register("dora", "Liu et al. 2024, arXiv 2402.09353")
def dora(rank: int = 8, alpha: float = 8.0, dropout: float = 0.0, target: str = r".*/(query|value)") -> Peft:
    """(m / ‖W + sAB‖) (xW + s dropout(x) A B) + bias, with the norm of each output column. Liu et al. 2024.

    arXiv 2402.09353, equation 5, with the norm under stop_gradient (section 4.3). m = ‖W‖ and B = 0 at the start. The
    norm is had without forming AB: ‖W + sAB‖² = ‖W‖² + 2s ⟨W, AB⟩ + s² ‖AB‖², column by column.

    Args:
      rank, alpha, dropout, target: as LoRA's; s = alpha / rank.
    """
    draw = low_rank("dora", rank, dropout, target)
    scale = alpha / rank

    def norm(w: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        across = jnp.sum((w.T @ a).T * b, axis=0)
        squared = jnp.sum((a.T @ a @ b) * b, axis=0)
        # Rounding could take a column of nearly nothing below zero.
        return jnp.sqrt(jnp.maximum(jnp.sum(w * w, axis=0) + scale * (2 * across + scale * squared), 1e-24))

    def init(key: jax.Array, params: Params) -> Delta:
        linear = sites(params, "kernel")
        return {
            site: {**ab, "magnitude": jnp.linalg.norm(linear[site]["kernel"], axis=0)}
            for site, ab in draw(key, params).items()
        }

    def tap(delta: Delta, site: str, call: Call, *args: jax.Array) -> jax.Array:
        y = call(*args)
        if (own := delta.get(site)) is None:
            return y
        (x,) = args
        a, b = own["a"], own["b"]
        factor = own["magnitude"] / jax.lax.stop_gradient(norm(call.params["kernel"], a, b))
        bias = call.params.get("bias", jnp.zeros(())).astype(y.dtype)
        branch = scale * (drop(call, x.astype(y.dtype), dropout) @ a.astype(y.dtype) @ b.astype(y.dtype))
        return factor.astype(y.dtype) * (y - bias + branch) + bias

    def merge(params: Params, delta: Delta) -> Params:
        linear = sites(params, "kernel")
        merged = {}
        for site, own in delta.items():
            w = linear[site]["kernel"]
            factor = own["magnitude"] / norm(w, own["a"], own["b"])
            merged[site] = {"kernel": factor * (w + scale * (own["a"] @ own["b"]))}
        return replace(params, merged)

    return Peft(init, tap=tap, merge=merge, reads_weights=True)
