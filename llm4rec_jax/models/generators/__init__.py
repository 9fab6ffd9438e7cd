"""Models that generate the semantic id of the next item, code by code."""

from llm4rec_jax.models.generators.base import GENERATORS, IdGenerator
from llm4rec_jax.registry import import_all

import_all(__name__, __path__)

__all__ = ["GENERATORS", "IdGenerator"]
