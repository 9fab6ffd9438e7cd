"""Recommendation with language models in JAX.

Names are imported when they are first used, so that `import llm4rec_jax` is quick:

    import llm4rec_jax as lr

    recommender = lr.load("runs/lora")

- a recommender for data frames: `LLM4Rec`
- a trained run: `load`, `evaluate`, `recommend`, `train`
- parts to build with: `data`, `models`, `losses`, `peft`, `baselines`
- what uses them: `inference`, `evaluation`, `training`, `tasks`, `runs`
- ground floor: `registry`, `trees`, `sharding`, `checksums`, `io`, `progress`
"""

import importlib
from typing import Any

from llm4rec_jax.version import __version__ as __version__

_MODULES = (
    *("data", "models", "losses", "peft", "baselines"),
    *("inference", "evaluation", "training", "tasks", "runs"),
    *("registry", "trees", "sharding", "checksums", "io", "progress"),
)
_NAMES = {
    "LLM4Rec": "runs.estimator",
    "load": "runs.load",
    "train": "training.loop",
    "evaluate": "evaluation.evaluate",
    "recommend": "inference.recommend",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_NAMES, *_MODULES, "__version__"]
