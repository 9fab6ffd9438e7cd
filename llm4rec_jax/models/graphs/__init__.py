"""Graph encoders, one a file; each registers itself."""

from llm4rec_jax.registry import import_all

import_all(__name__, __path__)
