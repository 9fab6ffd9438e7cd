"""What a figure was measured on."""

import importlib.metadata
import os
import platform
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


def product_rate(size: int = 2048, dtype: Any = jnp.float32, repeats: int = 5) -> float:
    """FLOP/s of a square matrix product on the default device, the median of some calls."""
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / float(np.median(seconds))
