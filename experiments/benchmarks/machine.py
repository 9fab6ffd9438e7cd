"""The machine and the types that a figure is measured with."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax
from absl import flags

from llm4rec_jax.data import assets
from llm4rec_jax.training import throughput as speed

_DTYPE = flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "bfloat16"],
    "Type of activations on both sides, in step, train, encode, trials.",
)
_ENCODER = flags.DEFINE_string("encoder", None, "Folder of an encoder for step and encode in place of MiniLM-L6.")

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "peft", "sentence-transformers")


def describe() -> dict[str, Any]:
    """Versions, device and cores, for every line of a benchmark."""
    return {
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }


def dtype() -> str:
    """Returns the type that activations are computed in."""
    return _DTYPE.value


def encoder() -> Path:
    """The folder of the encoder that is measured."""
    return assets.minilm() if _ENCODER.value is None else Path(_ENCODER.value)


def with_caches_in(folder: Path) -> dict[str, str]:
    """The environment of a command that keeps tokens and compiled programs in a folder of its own."""
    switches = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
    kept = {name: value for name, value in os.environ.items() if name not in switches}
    return {**kept, "XDG_CACHE_HOME": str(folder)}


def product_rate(dtype: str = "float32") -> float:
    """FLOP/s of a matrix product, of a size at which the device is busy with it for a millisecond or more."""
    return speed.product_rate(dtype, size=2048 if jax.default_backend() == "cpu" else 8192)


def _version(package: str) -> str | None:
    """Returns the version, None where it is not installed: the peers come with the extra "bench" only."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
