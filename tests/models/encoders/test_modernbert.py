"""ModernBERT against transformers: windows, both bases of the rotation, biases, and what its configs ask for."""

import json

import jax
import numpy as np
import pytest
import torch
from transformers import AutoConfig, ModernBertForMaskedLM

from llm4rec_jax.models.decoders.config import DecoderConfig
from llm4rec_jax.models.encoders.base import find_family
from llm4rec_jax.models.encoders.huggingface import load, read_config
from tests.models.encoders.parity import check

SMALL = {"vocab_size": 41, "num_hidden_layers": 4, "intermediate_size": 29, "max_position_embeddings": 64}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 900.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
}


def test_parity(tmp_path):
    """Four of thirteen tokens are seen to either side in all blocks but every third."""
    check("modernbert", tmp_path / "a", **SMALL, **TOKENS, hidden_size=18, num_attention_heads=3, local_attention=8)
    every_switch = {
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_eps": 1e-3,
        "hidden_activation": "silu",
        "local_attention": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
        "rope_parameters": ROPES,
    }
    check("modernbert", tmp_path / "b", **SMALL, **TOKENS, hidden_size=20, num_attention_heads=5, **every_switch)


def test_older_keys_say_the_same(tmp_path):
    """Those of the published folders, before transformers 5, and those that transformers makes of them."""
    older = {
        "model_type": "modernbert",
        **SMALL,
        **TOKENS,
        "hidden_size": 18,
        "num_attention_heads": 3,
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 8000.0,
        "local_attention": 10,
        "local_rope_theta": 500.0,
        "position_embedding_type": "absolute",
        "classifier_pooling": "mean",
    }
    (tmp_path / "config.json").write_text(json.dumps(older))
    _, ours = read_config(tmp_path)
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "newer")
    assert read_config(tmp_path / "newer")[1] == ours
    assert isinstance(ours, DecoderConfig)
    assert ours.sliding_rope is not None
    assert ours.layer_types == ("full_attention", "sliding_attention") * 2
    assert (ours.rope.rope_theta, ours.sliding_rope.rope_theta, ours.sliding_window) == (8000.0, 500.0, 6)


def test_a_model_of_masked_tokens(tmp_path):
    """Its head is left out, and it is no language model."""
    config = AutoConfig.for_model("modernbert", **SMALL, **TOKENS, hidden_size=18, num_attention_heads=3)
    model = ModernBertForMaskedLM(config).eval()
    model.save_pretrained(tmp_path)
    encoder, params = load(tmp_path)
    ids = np.arange(3, 9)[None]
    with torch.no_grad():
        want = model.model(torch.tensor(ids)).last_hidden_state.numpy()
    np.testing.assert_allclose(jax.jit(encoder.apply)({"params": params}, ids, ids > 0), want, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="modernbert has no language head"):
        load(tmp_path, language_head=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"local_attention": -1}, "local_attention is -1, must be an integer of at least 1"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers is 0, must be an integer of at least 1"),
        ({"embedding_dropout": 0.1}, "embedding_dropout is 0.1, but only the rate of mlp_dropout"),
        ({"layer_types": ["chunked_attention"] * 4}, "layer_types has 'chunked_attention'"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters has rope_theta beside full_attention"),
        ({"rope_parameters": {"full_attention": {"rope_type": "spiral"}}}, "rope_type 'spiral' is not one of"),
        ({"hidden_activation": "xielu"}, "hidden_act 'xielu' is not one of"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"norm_eps": "small"}, "norm_eps is 'small', must be of type float"),
    ],
)
def test_unsupported(fields, message):
    with pytest.raises(ValueError, match=message):
        find_family("modernbert").config_from_hf({**SMALL, "hidden_size": 18, "num_attention_heads": 3, **fields})
