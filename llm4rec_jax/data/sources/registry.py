"""The registry that the loaders enter themselves into."""

from collections.abc import Callable

from llm4rec_jax.data.interactions import Dataset
from llm4rec_jax.registry import Registry

# A loader takes the path first, then the options of its own as keywords.
Loader = Callable[..., Dataset]

SOURCES: Registry[Loader] = Registry("source")
register = SOURCES.register
