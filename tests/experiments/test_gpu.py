"""Variables for a machine with a GPU: only there, and none that the user has set."""

import os
import subprocess
import sys

import pytest

from experiments.cli import gpu


@pytest.fixture
def card(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "DEVICES", tmp_path)
    (tmp_path / "nvidia0").touch()


def test_a_machine_without_a_gpu_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "DEVICES", tmp_path)
    # The driver's own file is there without a card too.
    (tmp_path / "nvidiactl").touch()
    assert gpu.settings({}, processes=4) == {}


def test_the_user_s_own_settings_stay(card):
    assert gpu.settings({}) == {"XLA_FLAGS": gpu.XLA_FLAGS}
    assert gpu.settings({"XLA_FLAGS": ""}) == {}
    assert gpu.settings({"XLA_FLAGS": "--x"}, processes=2) == {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    assert gpu.settings({"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}, processes=2) == {"XLA_FLAGS": gpu.XLA_FLAGS}


def test_they_count_after_jax_was_imported(card, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    gpu.prepare()
    assert os.environ["XLA_FLAGS"] == gpu.XLA_FLAGS


def test_xla_knows_the_flags():
    """An unknown flag ends the process."""
    code = "import jax, os; os.environ['XLA_FLAGS'] = os.environ.pop('LATER'); print(jax.numpy.ones(2).sum())"
    environment = {**os.environ, "LATER": gpu.XLA_FLAGS, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2.0"
    wrong = {**environment, "LATER": "--xla_gpu_autotune_levels=0"}
    done = subprocess.run([sys.executable, "-c", code], env=wrong, capture_output=True, text=True, check=False)
    assert "Unknown flag" in done.stderr
