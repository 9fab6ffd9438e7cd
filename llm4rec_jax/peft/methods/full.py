"""Full fine-tuning: every parameter is trained."""

from collections.abc import Mapping

import jax

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, copy_of, match, replace, sites


@METHODS.register("full", "Howard & Ruder 2018, arXiv 1801.06146")
def full(target: str = r".*") -> Peft:
    """Full fine-tuning: the delta is a copy of the arrays of the target sites and is used in their place.

        y = x W + b,   W and b are trained

    Use it as the upper reference of every comparison, at the highest cost in memory and time.

    Args:
      target: Regular expression for the modules to train.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {"up": {"kernel": jax.numpy.ones((2, 3))}, "norm": {"scale": jax.numpy.ones(3)}}
      >>> peft.count(peft.create("full").init(jax.random.key(0), params))
      9

    References:
      Howard & Ruder, Universal Language Model Fine-tuning, 2018 (https://arxiv.org/abs/1801.06146).
    """

    def init(key: jax.Array, params: Params) -> Delta:
        modules = sites(params)
        holders = [site for site, arrays in modules.items() if any(not isinstance(a, Mapping) for a in arrays.values())]
        return {site: copy_of(modules[site], site) for site in match(target, holders)}

    return Peft(init, reparam=replace, merge=replace)
