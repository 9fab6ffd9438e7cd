"""Environment variables by which XLA starts faster, and shares memory, on an NVIDIA GPU."""

import os
from collections.abc import Mapping
from pathlib import Path

DEVICES = Path("/dev")

# By default XLA times variants of every matrix product before the first step of each shape, which took several runs
# with texts of many lengths more than ten minutes, and one or two without.
XLA_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


def settings(environment: Mapping[str, str], processes: int = 1) -> dict[str, str]:
    """Returns the variables to set on this machine; none where it has no GPU, and none that are set already.

    Args:
      environment: Variables that are set.
      processes: Number of processes that share the GPUs. By default the first would take the memory of all.
    """
    if not any(DEVICES.glob("nvidia[0-9]*")):
        return {}
    wanted = {"XLA_FLAGS": XLA_FLAGS}
    if processes > 1:
        wanted["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    return {name: value for name, value in wanted.items() if name not in environment}


def prepare(processes: int = 1) -> None:
    """Sets the variables for this process and those that it starts. They count until a device is used."""
    os.environ.update(settings(os.environ, processes))
