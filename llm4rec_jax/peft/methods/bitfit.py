"""BitFit: only biases are trained."""

import jax

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, match, replace, sites


@METHODS.register("bitfit", "Ben Zaken et al. 2022, arXiv 2106.10199")
def bitfit(target: str = r".*") -> Peft:
    """Trains the biases of the sites that match, those of norms included. Ben Zaken et al. 2022 (arXiv 2106.10199)."""

    def init(key: jax.Array, params: Params) -> Delta:
        biased = sites(params, "bias")
        return {site: {"bias": biased[site]["bias"].copy()} for site in match(target, biased)}

    return Peft(init, reparam=replace, merge=replace)
