"""Houlsby's bottleneck adapters: two in each block."""

from functools import partial

import jax

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.methods.bottleneck import bottleneck
from llm4rec_jax.peft.registry import METHODS


@METHODS.register("houlsby", "Houlsby et al. 2019, arXiv 1902.00751")
def houlsby(reduction: int = 16, stddev: float = 1e-3, target: str = r"layer_\d+/(attention|ffn)") -> Peft:
    """Bottleneck adapters after both sublayers of each block, before residual and norm.

        h ← h + GELU(h W_down + b) W_up + c

    Adapters are near the identity at the start, as in the authors' code.

    Choose it when many tasks share one encoder. Adapters cannot be merged and lengthen inference slightly.

    Args:
      reduction: Width of the encoder divided by the width of the bottleneck.
      stddev: Standard deviation of both matrices at the start.
      target: Regular expression for the sublayers to adapt.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {"layer_0": {"ffn": {"down": {"kernel": jax.numpy.ones((64, 32))}}}}
      >>> jax.tree.map(jax.numpy.shape, peft.create("houlsby").init(jax.random.key(0), params))
      {'layer_0/ffn': {'down': (32, 2), 'down_bias': (2,), 'up': (2, 32), 'up_bias': (32,)}}

    References:
      Houlsby et al., Parameter-Efficient Transfer Learning for NLP, 2019 (https://arxiv.org/abs/1902.00751).
    """
    return bottleneck("houlsby", reduction, stddev, target, partial(jax.nn.gelu, approximate=False))
