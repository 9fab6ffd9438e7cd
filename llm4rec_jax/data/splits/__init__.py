"""Splits of interactions into training, validation and test; every module here is imported, so that it registers."""

from llm4rec_jax.registry import import_all

import_all(__name__, __path__)
