"""LayerNorm tuning: only norms are trained."""

import jax

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, copy_of, match, replace, sites


@METHODS.register("layernorm", "Zhao et al. 2023, arXiv 2312.11420")
def layernorm(target: str = r".*") -> Peft:
    """Trains the scale and, where there is one, the bias of the norms.

        y = γ ∘ (x − mean x) / std x + β,   γ and β are trained

    Use it where memory is scarce, or as an addition to another method. Its delta is among the smallest.

    Args:
      target: Regular expression for the norms to train.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {"norm": {"scale": jax.numpy.ones(3)}, "up": {"kernel": jax.numpy.ones((3, 3))}}
      >>> list(peft.create("layernorm").init(jax.random.key(0), params))
      ['norm']

    References:
      Zhao et al., Tuning LayerNorm in Attention, 2023 (https://arxiv.org/abs/2312.11420).
    """

    def init(key: jax.Array, params: Params) -> Delta:
        norms = sites(params, "scale")
        return {site: copy_of(norms[site], site) for site in match(target, norms)}

    return Peft(init, reparam=replace, merge=replace)
