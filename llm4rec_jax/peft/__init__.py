"""Parameter-efficient methods, one file each; importing the package registers them all.

Adding one: a file here with one `@METHODS.register`ed function that returns a `Peft`, and its import below. See
docs/adding_a_method.md.
"""

from llm4rec_jax.peft import (
    adalora,
    bitfit,
    compacter,
    dora,
    frozen,
    full,
    galore,
    houlsby,
    ia3,
    k_adapter,
    last_k,
    layernorm,
    lora,
    lora_plus,
    oft,
    parallel,
    pfeiffer,
    prefix,
    prompt,
    side,
    vera,
)
from llm4rec_jax.peft.core import Peft, chain, forward, within
from llm4rec_jax.peft.methods import METHODS, create
from llm4rec_jax.peft.sites import Delta, count

__all__ = [
    "METHODS",
    "Delta",
    "Peft",
    "adalora",
    "bitfit",
    "chain",
    "compacter",
    "count",
    "create",
    "dora",
    "forward",
    "frozen",
    "full",
    "galore",
    "houlsby",
    "ia3",
    "k_adapter",
    "last_k",
    "layernorm",
    "lora",
    "lora_plus",
    "oft",
    "parallel",
    "pfeiffer",
    "prefix",
    "prompt",
    "side",
    "vera",
    "within",
]
