"""Pfeiffer's bottleneck adapters: one a block."""

import jax

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.methods.bottleneck import bottleneck
from llm4rec_jax.peft.registry import METHODS


@METHODS.register("pfeiffer", "Pfeiffer et al. 2021, arXiv 2005.00247")
def pfeiffer(reduction: int = 16, stddev: float = 1e-3, target: str = r"layer_\d+/ffn") -> Peft:
    """h + ReLU(h W_down + b) W_up + c after the feed-forward sublayer only, before residual and norm.

    Pfeiffer et al. 2021 (AdapterFusion, arXiv 2005.00247); half of Houlsby's parameters. Near the identity at the
    start: both matrices ~ N(0, stddev²).

    Args:
      reduction: the bottleneck is the width divided by this.
      stddev: of both matrices at the start.
      target: the sublayers that get an adapter.
    """
    return bottleneck("pfeiffer", reduction, stddev, target, jax.nn.relu)
