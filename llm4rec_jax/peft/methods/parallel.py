"""Parallel adapters: a small network beside the feed-forward network, not after it."""

import jax
import jax.numpy as jnp

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.methods.bottleneck import sublayers
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params


@METHODS.register("parallel", "He et al. 2022, arXiv 2110.04366")
def parallel(reduction: int = 2, scale: float = 4.0, target: str = r"layer_\d+/ffn") -> Peft:
    """FFN(x) + s ReLU(x W_down) W_up. He et al. 2022 (arXiv 2110.04366, the scaled parallel adapter).

    W_down ~ U(±1/√D) as LoRA's A, W_up = 0.

    Args:
      reduction: the bottleneck is the width divided by this.
      scale: s.
      target: the sublayers that get an adapter.
    """

    def init(key: jax.Array, params: Params) -> Delta:
        delta = {}
        for i, site, width, inner in sublayers("parallel", params, target, reduction):
            bound = width**-0.5
            down = jax.random.uniform(jax.random.fold_in(key, i), (width, inner), minval=-bound, maxval=bound)
            delta[site] = {"down": down, "up": jnp.zeros((inner, width))}
        return delta

    def tap(delta: Delta, site: str, call: Call, *args: jax.Array) -> jax.Array:
        h = call(*args)
        if (w := delta.get(site)) is None:
            return h
        x = args[0].astype(h.dtype)
        return h + scale * (jax.nn.relu(x @ w["down"].astype(h.dtype)) @ w["up"].astype(h.dtype))

    return Peft(init, tap=tap)
