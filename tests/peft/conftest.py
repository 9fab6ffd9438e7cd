"""The small encoder's weights, and folders of good adapters over it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm4rec_jax.checksums import MANIFEST
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.peft.hf.save_load import save
from tests.conftest import random_bert
from tests.helpers.adapters import ADAPTERS, made
from tests.helpers.small import CONFIG


@pytest.fixture(scope="session")
def params(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("small")
    random_bert(3, **CONFIG).save_pretrained(folder)
    return pretrained.load(folder)[1]


@pytest.fixture(scope="session")
def good(params: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of good adapters, by key."""
    root = tmp_path_factory.mktemp("good")
    return {key: save(root / key, *made(params, key), params) for key in ADAPTERS}


@pytest.fixture
def copied(good: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a good adapter as another program would have left it, without checksums, to be damaged."""
    bare = shutil.ignore_patterns(MANIFEST)
    return lambda key: Path(shutil.copytree(good[key], tmp_path / "adapter", ignore=bare))
