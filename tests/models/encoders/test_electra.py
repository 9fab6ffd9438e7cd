"""ELECTRA against transformers."""

import pytest

from llm4rec_jax.models.encoders.base import find_family
from tests.models.encoders.parity import check

SMALL = {"vocab_size": 41, "num_hidden_layers": 3, "intermediate_size": 29, "max_position_embeddings": 14}


def test_parity(tmp_path):
    check("electra", tmp_path / "a", **SMALL, hidden_size=21, num_attention_heads=3, embedding_size=10)
    check("electra", tmp_path / "b", **SMALL, hidden_size=20, num_attention_heads=5, embedding_size=20)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding_size": 0}, "embedding_size is 0, must be at least 1"),
        ({"add_cross_attention": True}, "add_cross_attention is set"),
    ],
)
def test_unsupported(fields, message):
    with pytest.raises(ValueError, match=message):
        find_family("electra").config_from_hf(fields)
