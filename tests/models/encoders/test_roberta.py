"""RoBERTa and XLM-R against transformers, and how their positions are counted."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from llm4rec_jax.models.encoders.base import find_family
from llm4rec_jax.models.encoders.roberta import CountedEmbeddings, RobertaConfig
from tests.models.encoders.parity import check

SMALL: dict[str, Any] = {"vocab_size": 41, "num_hidden_layers": 3, "intermediate_size": 29}


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta"])
def test_parity(model_type, tmp_path):
    check(model_type, tmp_path / "a", **SMALL, hidden_size=21, num_attention_heads=3, max_position_embeddings=19)
    more = {"pad_token_id": 0, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "hidden_act": "relu"}
    check(
        model_type, tmp_path / "b", **SMALL, hidden_size=20, num_attention_heads=5, max_position_embeddings=14, **more
    )


def test_positions_begin_behind_padding_and_leave_room_for_it():
    config = find_family("roberta").config_from_hf({"max_position_embeddings": 514, "pad_token_id": 1})
    assert config.max_position_embeddings == 512
    ids = np.array([[5, 6, 1, 1], [1, 1, 7, 8]])
    counted = CountedEmbeddings(config).positions(ids, ids > 1)
    np.testing.assert_array_equal(counted, [[2, 3, 1, 1], [1, 1, 2, 3]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"is_decoder": True}, "is_decoder is set"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        ({"pad_token_id": None}, "pad_token_id is None, but positions begin behind it"),
        ({"hidden_size": "768"}, "hidden_size is '768', must be of type int"),
    ],
)
def test_unsupported(fields, message):
    with pytest.raises(ValueError, match=message):
        find_family("roberta").config_from_hf(fields)


def test_longest_text():
    config = dataclasses.replace(RobertaConfig(), max_position_embeddings=4)
    with pytest.raises(ValueError, match="5 tokens, but the encoder has 4 positions"):
        CountedEmbeddings(config).init(jax.random.key(0), np.full((1, 5), 7), np.ones((1, 5), bool))
