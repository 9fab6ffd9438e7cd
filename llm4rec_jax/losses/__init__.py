"""Training losses by name.

Every file here is imported, so that a new loss is one function in one file: `@LOSSES.register(NAME)` on a `Loss`.
"""

from llm4rec_jax.losses.ranking import LOSSES, Loss, reduce_mean
from llm4rec_jax.registry import import_all

__all__ = ["LOSSES", "Loss", "reduce_mean"]

import_all(__name__, __path__)
