"""Parameter-efficient methods, one file each; importing the package registers them all.

Adding one: a file here with one `@METHODS.register`ed function that returns a `Peft`, and its import below.
"""

from llm4rec_jax.peft import bitfit, frozen, full, houlsby, lora, prefix
from llm4rec_jax.peft.core import METHODS, Delta, Peft, chain, count, create, forward, within

__all__ = [
    "METHODS",
    "Delta",
    "Peft",
    "bitfit",
    "chain",
    "count",
    "create",
    "forward",
    "frozen",
    "full",
    "houlsby",
    "lora",
    "prefix",
    "within",
]
