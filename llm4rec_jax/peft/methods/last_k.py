"""The top layers are trained."""

import re

import jax

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, copy_of, replace, sites


@METHODS.register("last_k", "Howard & Ruder 2018, arXiv 1801.06146")
def last_k(k: int = 2) -> Peft:
    """Full fine-tuning of the last k blocks. Howard & Ruder 2018 (arXiv 1801.06146).

    Args:
      k: how many blocks, counted from the top.
    """

    def init(key: jax.Array, params: Params) -> Delta:
        modules = sites(params)
        blocks = {site: int(found[1]) for site in modules if (found := re.match(r"(?:.*/)?layer_(\d+)\b", site))}
        depth = max(blocks.values(), default=-1) + 1
        if not 1 <= k <= depth:
            raise ValueError(f"last_k: k is {k}, must be from 1 to {depth}, the number of blocks")
        return {s: own for s, layer in blocks.items() if layer >= depth - k and (own := copy_of(modules[s]))}

    return Peft(init, reparam=replace, merge=replace)
