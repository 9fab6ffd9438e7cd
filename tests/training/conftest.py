"""A small problem for the loop: users, texts of items, and an encoder."""

from pathlib import Path

import pytest

from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.data.features.tokens import Tokens, tokenise, tokenizer
from llm4rec_jax.data.splits.split import Split
from tests.helpers import tiny


@pytest.fixture(scope="module")
def split() -> Split:
    return tiny.split()


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.encoder_folder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def tokens(split: Split, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    texts = item_texts(split.dataset.items, "the {title}.")
    return tokenise(texts, tokenizer(encoder_folder), 16, tmp_path_factory.mktemp("cache"))
