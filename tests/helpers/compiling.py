"""Compiler flags and devices of tests, here and in processes of their own. Must not import jax."""

import os

# Tests compile thousands of programs and run each a few times: code that XLA hardly optimises costs less than half of
# their processor time. All sides of a comparison by bits must have the same flags. TESTS_XLA_FLAGS="" compiles as users
# do, which `make test-long` does.
_QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)


def xla_flags(devices: int) -> str:
    """Returns XLA_FLAGS for a number of CPU devices; they count in processes that have not imported jax."""
    quick = os.environ.get("TESTS_XLA_FLAGS", _QUICK)
    return f"--xla_force_host_platform_device_count={devices} {quick}".strip()


def environment(devices: int = 1) -> dict[str, str]:
    """Returns the environment of a process that a test starts: this one's, with a number of devices."""
    return {**os.environ, "XLA_FLAGS": xla_flags(devices)}
