"""`import llm4rec_jax` is quick, and what it promises is there."""

import subprocess
import sys

import llm4rec_jax


def test_importing_the_package_imports_no_framework():
    script = "import sys, llm4rec_jax; print([m for m in ('jax', 'torch', 'tensorflow', 'flax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_module_of_the_surface_is_there():
    for name in llm4rec_jax._MODULES:
        assert getattr(llm4rec_jax, name).__name__ == f"llm4rec_jax.{name}"


def test_every_name_of_the_surface_is_there():
    for name in llm4rec_jax._NAMES:
        assert callable(getattr(llm4rec_jax, name))
        assert name in dir(llm4rec_jax)
