"""Nothing of the module is trained; what stands outside of it still is."""

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.registry import METHODS


@METHODS.register("frozen", "Peters et al. 2019, arXiv 1903.05987")
def frozen() -> Peft:
    """The module as it came: an empty delta. Feature extraction, Peters et al. 2019 (arXiv 1903.05987)."""
    return Peft(init=lambda key, params: {}, merge=lambda params, delta: params)
