"""IA3: keys, values and the hidden layer of the feed-forward network are rescaled."""

import re

import jax
import jax.numpy as jnp

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, match, replace, sites


@METHODS.register("ia3", "Liu et al. 2022, arXiv 2205.05638")
def ia3(target: str = r".*/(key|value|down)", feedforward: str = r".*/down") -> Peft:
    """l ∘ y of keys and values, and l ∘ x of the feed-forward network's last layer. Liu et al. 2022 (arXiv 2205.05638).

    l = 1 at the start.

    Args:
      target: which linear layers.
      feedforward: those of them whose input is scaled, not the output.
    """

    def init(key: jax.Array, params: Params) -> Delta:
        linear = sites(params, "kernel")
        axis = {site: 0 if re.fullmatch(feedforward, site) else 1 for site in match(target, linear)}
        return {site: {"scale": jnp.ones(linear[site]["kernel"].shape[a])} for site, a in axis.items()}

    def tap(delta: Delta, site: str, call: Call, *args: jax.Array) -> jax.Array:
        if (own := delta.get(site)) is None:
            return call(*args)
        if re.fullmatch(feedforward, site):
            (x,) = args
            return call(x * own["scale"].astype(x.dtype))
        y = call(*args)
        return y * own["scale"].astype(y.dtype)

    def merge(params: Params, delta: Delta) -> Params:
        linear = sites(params, "kernel")
        merged = {}
        for site, own in delta.items():
            base, scale = linear[site], own["scale"]
            if re.fullmatch(feedforward, site):
                merged[site] = {"kernel": base["kernel"] * scale[:, None]}
            else:
                merged[site] = {name: base[name] * scale for name in ("kernel", "bias") if name in base}
        return replace(params, merged)

    return Peft(init, tap=tap, merge=merge)
