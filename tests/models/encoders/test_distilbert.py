"""DistilBERT against transformers."""

import jax
import numpy as np
import pytest

from llm4rec_jax.models.encoders.base import find_family
from llm4rec_jax.models.encoders.bert import Bert
from llm4rec_jax.models.encoders.distilbert import DistilBertConfig
from tests.models.encoders.parity import check

SMALL = {"vocab_size": 41, "n_layers": 3, "hidden_dim": 29, "max_position_embeddings": 14}


def test_parity(tmp_path):
    check("distilbert", tmp_path / "a", **SMALL, dim=21, n_heads=3)
    check("distilbert", tmp_path / "b", **SMALL, dim=20, n_heads=5, activation="relu", sinusoidal_pos_embds=True)


def test_dropout_rates_have_other_names():
    config = find_family("distilbert").config_from_hf({"dropout": 0.2, "attention_dropout": 0.3})
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0.3)


def test_no_token_types():
    ids = np.ones((1, 3), int)
    with pytest.raises(ValueError, match="distilbert has no token types"):
        Bert(DistilBertConfig(num_hidden_layers=1)).init(jax.random.key(0), ids, ids, ids)


def test_unsupported():
    with pytest.raises(ValueError, match=r"n_heads is 0\.5, must be of type int"):
        find_family("distilbert").config_from_hf({"n_heads": 0.5})
