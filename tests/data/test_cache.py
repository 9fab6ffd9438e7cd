"""The folder of caches where there is no home."""

import os
import tempfile
from pathlib import Path

import pytest

from llm4rec_jax.data import cache, download


@pytest.fixture
def no_home(monkeypatch):
    """A user without HOME and without a passwd entry, as in a container."""

    def fail():
        raise RuntimeError("Could not determine home directory.")

    for name in ("HOME", "XDG_CACHE_HOME", download.ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", fail)


def test_without_a_home_caches_lie_among_temporary_files(no_home):
    folder = cache.default_folder("tokens")
    assert folder.is_relative_to(tempfile.gettempdir())
    assert str(os.getuid()) in str(folder)
    assert download.cache_folder() == folder.parent


def test_the_environment_decides(no_home, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder("tokens") == tmp_path / "llm4rec_jax" / "tokens"
    monkeypatch.setenv(download.ENVIRONMENT, str(tmp_path / "data"))
    assert download.cache_folder() == tmp_path / "data"
