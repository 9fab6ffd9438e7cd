"""MPNet against transformers, and its buckets of distances."""

import numpy as np
import pytest
import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from llm4rec_jax.models.encoders.base import find_family
from llm4rec_jax.models.layers.relative import buckets
from tests.models.encoders.parity import check

SMALL = {"vocab_size": 41, "num_hidden_layers": 3, "intermediate_size": 29}


def test_parity(tmp_path):
    check("mpnet", tmp_path / "a", **SMALL, hidden_size=21, num_attention_heads=3, max_position_embeddings=19)
    more = {"layer_norm_eps": 1e-5, "hidden_act": "relu"}
    check("mpnet", tmp_path / "b", **SMALL, hidden_size=20, num_attention_heads=5, max_position_embeddings=15, **more)


def test_buckets_of_long_texts():
    at = torch.arange(512)
    theirs = MPNetEncoder.relative_position_bucket(at[None] - at[:, None])
    np.testing.assert_array_equal(buckets(512), theirs.numpy())


def test_unsupported():
    with pytest.raises(ValueError, match="relative_attention_num_buckets is 16, but only 32 is supported"):
        find_family("mpnet").config_from_hf({"relative_attention_num_buckets": 16})
