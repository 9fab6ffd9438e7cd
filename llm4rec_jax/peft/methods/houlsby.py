"""Houlsby's bottleneck adapters."""

from functools import partial

import jax

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.methods.bottleneck import bottleneck
from llm4rec_jax.peft.registry import METHODS


@METHODS.register("houlsby", "Houlsby et al. 2019, arXiv 1902.00751")
def houlsby(reduction: int = 16, stddev: float = 1e-3, target: str = r"layer_\d+/(attention|ffn)") -> Peft:
    """h + GELU(h W_down + b) W_up + c after both sublayers, before residual and norm. Houlsby et al. 2019.

    arXiv 1902.00751. Near the identity at the start: both matrices ~ N(0, stddev²), as in the authors' code.

    Args:
      reduction: the bottleneck is the width divided by this.
      stddev: of both matrices at the start.
      target: the sublayers that get an adapter.
    """
    return bottleneck("houlsby", reduction, stddev, target, partial(jax.nn.gelu, approximate=False))
