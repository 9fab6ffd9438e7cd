"""Only layer norms are trained."""

import jax

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, copy_of, match, replace, sites


@METHODS.register("layernorm", "Zhao et al. 2023, arXiv 2312.11420")
def layernorm(target: str = r".*") -> Peft:
    """Trains the scale and bias of the layer norms that match. Zhao et al. 2023 (arXiv 2312.11420)."""

    def init(key: jax.Array, params: Params) -> Delta:
        norms = sites(params, "scale")
        return {site: copy_of(norms[site]) for site in match(target, norms)}

    return Peft(init, reparam=replace, merge=replace)
