"""Parallel adapters: a small network beside the feed-forward network instead of after it."""

import jax
import jax.numpy as jnp

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.methods.bottleneck import sublayers
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params


@METHODS.register("parallel", "He et al. 2022, arXiv 2110.04366")
def parallel(reduction: int = 2, scale: float = 4.0, target: str = r"layer_\d+/ffn") -> Peft:
    """The scaled parallel adapter.

        y = FFN(x) + s · ReLU(x W_down) W_up

    W_down is drawn from U(±1/√D) as LoRA's A, and W_up is zero, so training starts at the pretrained function.

    Choose it when parameters may be many: it is the strongest single adapter in the authors' comparison, and the
    largest at its default width.

    Args:
      reduction: Width of the encoder divided by the width of the bottleneck.
      scale: s, the factor on the adapter's output.
      target: Regular expression for the sublayers to adapt.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {"layer_0": {"ffn": {"down": {"kernel": jnp.ones((64, 32))}}}}
      >>> jax.tree.map(jnp.shape, peft.create("parallel").init(jax.random.key(0), params))
      {'layer_0/ffn': {'down': (32, 16), 'up': (16, 32)}}

    References:
      He et al., Towards a Unified View of Parameter-Efficient Transfer Learning, 2022
      (https://arxiv.org/abs/2110.04366).
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
