"""Recommendation with language models in JAX.

Submodules are imported when they are first used, so that `import llm4rec_jax` is quick.
"""

import importlib
from types import ModuleType

from llm4rec_jax.version import __version__ as __version__

_SUBMODULES = (
    "baselines",
    "data",
    "evaluation",
    "inference",
    "losses",
    "models",
    "peft",
    "registry",
    "runs",
    "sharding",
    "tasks",
    "training",
)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_SUBMODULES, "__version__"]
