"""Pfeiffer's bottleneck adapters: one in each block."""

import jax

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.methods.bottleneck import bottleneck
from llm4rec_jax.peft.registry import METHODS


@METHODS.register("pfeiffer", "Pfeiffer et al. 2021, arXiv 2005.00247")
def pfeiffer(reduction: int = 16, stddev: float = 1e-3, target: str = r"layer_\d+/ffn") -> Peft:
    """Bottleneck adapters after the feed-forward sublayer of each block, before residual and norm.

        h ← h + ReLU(h W_down + b) W_up + c

    Adapters are near the identity at the start.

    Choose it over Houlsby's adapters for half of their parameters at nearly the same quality.

    Args:
      reduction, stddev, target: See `houlsby`.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {"layer_0": {"ffn": {"down": {"kernel": jax.numpy.ones((64, 32))}}}}
      >>> peft.count(peft.create("pfeiffer").init(jax.random.key(0), params))
      162

    References:
      Pfeiffer et al., AdapterFusion, 2021 (https://arxiv.org/abs/2005.00247).
    """
    return bottleneck("pfeiffer", reduction, stddev, target, jax.nn.relu)
