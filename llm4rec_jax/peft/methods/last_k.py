"""Partial fine-tuning: the top blocks are trained."""

import re

import jax

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, copy_of, replace, sites


@METHODS.register("last_k", "Howard & Ruder 2018, arXiv 1801.06146")
def last_k(k: int = 2) -> Peft:
    """Full fine-tuning of the last k blocks.

        H_{i+1} = block_i(H_i),   block_i is trained for i ≥ depth − k

    The states below block depth − k do not change, so they are computed once a run where memory allows.

    Use it as a strong and cheap baseline for shallow encoders.

    Args:
      k: Number of blocks to train, counted from the top.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {f"layer_{i}": {"up": {"kernel": jax.numpy.ones((2, 3))}} for i in range(4)}
      >>> list(peft.create("last_k", {"last_k": {"k": 1}}).init(jax.random.key(0), params))
      ['layer_3/up']

    References:
      Howard & Ruder, Universal Language Model Fine-tuning, 2018 (https://arxiv.org/abs/1801.06146).
    """

    def init(key: jax.Array, params: Params) -> Delta:
        modules = sites(params)
        blocks = {site: int(m[1]) for site in modules if (m := re.match(r"(?:.*/)?layer_(\d+)\b", site))}
        depth = max(blocks.values(), default=-1) + 1
        if not 1 <= k <= depth:
            raise ValueError(f"last_k: k is {k}, must be from 1 to {depth}, the number of blocks")
        trained = {site: copy_of(modules[site], site) for site, layer in blocks.items() if layer >= depth - k}
        return {site: arrays for site, arrays in trained.items() if arrays}

    return Peft(init, reparam=replace, merge=replace)
