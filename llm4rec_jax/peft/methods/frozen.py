"""The frozen baseline: nothing of the module is trained."""

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.registry import METHODS


@METHODS.register("frozen", "Peters et al. 2019, arXiv 1903.05987")
def frozen() -> Peft:
    """Feature extraction: only parameters outside the module are trained.

        y = M(x),   the delta is empty

    Use it as the baseline of every comparison. Item vectors are computed once a run, so a step costs next to nothing.

    Example:
      >>> from llm4rec_jax import peft
      >>> peft.create("frozen").init(None, {"query": {"kernel": 1}})
      {}

    References:
      Peters et al., To Tune or Not to Tune?, 2019 (https://arxiv.org/abs/1903.05987).
    """
    return Peft(init=lambda key, params: {}, merge=lambda params, delta: params)
