"""Every parameter is trained."""

import jax

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, copy_of, match, replace, sites


@METHODS.register("full", "Howard & Ruder 2018, arXiv 1801.06146")
def full(target: str = r".*") -> Peft:
    """Full fine-tuning: the delta is a copy of the arrays of the sites that match, and takes their place.

    Howard & Ruder 2018 (arXiv 1801.06146).
    """

    def init(key: jax.Array, params: Params) -> Delta:
        modules = sites(params)
        holders = [site for site, arrays in modules.items() if any(isinstance(a, jax.Array) for a in arrays.values())]
        return {site: copy_of(modules[site]) for site in match(target, holders)}

    return Peft(init, reparam=replace, merge=replace)
