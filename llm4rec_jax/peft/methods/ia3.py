"""IA3: keys, values and the hidden layer of the feed-forward network are rescaled."""

import re

import jax
import jax.numpy as jnp

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, match, replace, sites


@METHODS.register("ia3", "Liu et al. 2022, arXiv 2205.05638")
def ia3(target: str = r".*/(key|value|down)", feedforward: str = r".*/down") -> Peft:
    """Infused adapter by inhibiting and amplifying inner activations.

        y = l ∘ (x W + bias) for keys and values,   y = (l ∘ x) W + bias for the feed-forward network's last layer

    l starts at one, so training starts at the pretrained function.

    Choose it for few examples and many adapters: it trains two to three vectors a block, and merges.

    Args:
      target: Regular expression for the linear layers to adapt.
      feedforward: Regular expression for those of them whose input is scaled instead of the output.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {"layer": {"key": {"kernel": jnp.ones((2, 3))}, "down": {"kernel": jnp.ones((5, 2))}}}
      >>> jax.tree.map(jnp.shape, peft.create("ia3").init(jax.random.key(0), params))
      {'layer/down': {'scale': (5,)}, 'layer/key': {'scale': (3,)}}

    References:
      Liu et al., Few-Shot Parameter-Efficient Fine-Tuning, 2022 (https://arxiv.org/abs/2205.05638).
    """

    def init(key: jax.Array, params: Params) -> Delta:
        linear = sites(params, "kernel")
        axis = {site: 0 if re.fullmatch(feedforward, site) else 1 for site in match(target, linear)}
        return {site: {"scale": jnp.ones(linear[site]["kernel"].shape[a])} for site, a in axis.items()}

    def tap(delta: Delta, site: str, call: Call, *args: jax.Array) -> jax.Array:
        if (w := delta.get(site)) is None:
            return call(*args)
        if re.fullmatch(feedforward, site):
            (x,) = args
            return call(x * w["scale"].astype(x.dtype))
        y = call(*args)
        return y * w["scale"].astype(y.dtype)

    def merge(params: Params, delta: Delta) -> Params:
        linear = sites(params, "kernel")
        merged = {}
        for site, w in delta.items():
            base, scale = linear[site], w["scale"]
            if re.fullmatch(feedforward, site):
                merged[site] = {"kernel": jnp.asarray(base["kernel"]) * scale[:, None]}
            else:
                merged[site] = {name: jnp.asarray(base[name]) * scale for name in ("kernel", "bias") if name in base}
        return replace(params, merged)

    return Peft(init, tap=tap, merge=merge)
