"""Parameter-efficient fine-tuning: the methods, and the algebra that they are written in.

Example:
    >>> from llm4rec_jax import peft
    >>> peft.create("lora+bitfit", {"lora": {"rank": 4}}).name
    'lora+bitfit'
"""

from llm4rec_jax.peft import methods as methods
from llm4rec_jax.peft.core import Peft, chain, forward, within
from llm4rec_jax.peft.registry import METHODS, create
from llm4rec_jax.peft.sites import Delta, count

__all__ = ["METHODS", "Delta", "Peft", "chain", "count", "create", "forward", "within"]
