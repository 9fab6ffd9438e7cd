"""What a figure was measured on."""

import importlib.metadata
import os
import platform
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "peft", "sentence-transformers")


def describe() -> dict[str, Any]:
    """Versions, device and cores, for every line of a benchmark."""
    return {
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    """None where it is not installed: the peers come with the extra "bench" only."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
