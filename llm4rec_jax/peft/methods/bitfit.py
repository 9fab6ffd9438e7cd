"""BitFit: only biases are trained."""

import jax

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, match, replace, sites


@METHODS.register("bitfit", "Ben Zaken et al. 2022, arXiv 2106.10199")
def bitfit(target: str = r".*") -> Peft:
    """Bias-term fine-tuning, the biases of norms included.

        y = x W + b,   only b is trained

    Use it where the delta must be small, with encoders of BERT's kind: most recent decoders have no biases.

    Args:
      target: Regular expression for the modules whose biases are trained.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {"up": {"kernel": jax.numpy.ones((2, 3)), "bias": jax.numpy.zeros(3)}}
      >>> peft.count(peft.create("bitfit").init(jax.random.key(0), params))
      3

    References:
      Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning, 2022 (https://arxiv.org/abs/2106.10199).
    """

    def init(key: jax.Array, params: Params) -> Delta:
        biased = sites(params, "bias")
        if not biased:
            raise ValueError("bitfit: nothing here has a bias, as in most decoders: choose layernorm or lora")
        return {site: {"bias": biased[site]["bias"].copy()} for site in match(target, biased)}

    return Peft(init, reparam=replace, merge=replace)
