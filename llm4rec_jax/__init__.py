"""Recommendation with language models in JAX.

Submodules are imported when first used, so that `import llm4rec_jax` is quick:

    llm4rec_jax.data        datasets, splits, texts, batches
    llm4rec_jax.models      encoder, pooling, user models, heads, recommender
    llm4rec_jax.peft        parameter-efficient methods
    llm4rec_jax.losses, .metrics, .train, .evaluate, …
"""

import importlib
from types import ModuleType

from llm4rec_jax.version import __version__ as __version__

_SUBMODULES = (
    "baselines",
    "checkpoint",
    "data",
    "evaluate",
    "losses",
    "metrics",
    "models",
    "objective",
    "optim",
    "peft",
    "ranking",
    "registry",
    "scoring",
    "sharding",
    "train",
)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_SUBMODULES, "__version__"]
