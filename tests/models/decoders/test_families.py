"""Every decoder family against transformers: states, logits, gradients, padding, folders."""

import json
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm4rec_jax.models.encoders.huggingface import load, save
from llm4rec_jax.trees import flatten
from tests.models.decoders.parity import RIGHT, Pair, check_gradients, check_states, make_pair

SMALL = {"vocab_size": 41, "num_hidden_layers": 3, "intermediate_size": 29, "max_position_embeddings": 64}
GROUPED = {**SMALL, "hidden_size": 18, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}
SQUARE = {**SMALL, "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 4}
NARROW = {**SMALL, "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}
CAPS = {"attn_logit_softcapping": 0.8, "final_logit_softcapping": 1.3}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
BY_TYPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 700.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 300.0,
    "short_factor": [1.0, 1.2, 1.9],
    "long_factor": [2.0, 3.0, 4.0],
}
OPT = {
    "vocab_size": 41,
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "ffn_dim": 23,
    "max_position_embeddings": 32,
    "word_embed_proj_dim": 20,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, grouped": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "llama 3, biased": ("llama", {**SQUARE, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
    "mistral, window": ("mistral", {**GROUPED, "sliding_window": 4}),
    "mistral, full": ("mistral", {**SQUARE, "sliding_window": None, "tie_word_embeddings": True}),
    "qwen2, tied": ("qwen2", {**NARROW, "tie_word_embeddings": True}),
    "qwen2, window": ("qwen2", {**NARROW, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3, biased, window": (
        "qwen3",
        {**GROUPED, "attention_bias": True, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "gemma": ("gemma", GROUPED),
    "gemma, biased": ("gemma", {**SQUARE, "head_dim": 6, "attention_bias": True, "hidden_act": "gelu"}),
    "gemma2": ("gemma2", {**GROUPED, **CAPS, "sliding_window": 4, "query_pre_attn_scalar": 14}),
    "gemma2, biased": ("gemma2", {**SQUARE, "head_dim": 8, "attention_bias": True, "sliding_window": 64}),
    "gemma3": ("gemma3_text", {**GROUPED, "sliding_window": 4, "query_pre_attn_scalar": 12, "layer_types": MIXED}),
    "gemma3, every switch": (
        "gemma3_text",
        {
            **GROUPED,
            "attention_bias": True,
            "final_logit_softcapping": 1.3,
            "sliding_window": 3,
            "layer_types": MIXED,
            "rope_parameters": BY_TYPE,
        },
    ),
    "gemma3, bidirectional": (
        "gemma3_text",
        {**GROUPED, "sliding_window": 6, "layer_types": MIXED, "use_bidirectional_attention": True},
    ),
    "phi3": ("phi3", {**NARROW, "tie_word_embeddings": True, "original_max_position_embeddings": 64}),
    "phi3, part of heads, longrope, window": (
        "phi3",
        {
            **NARROW,
            "hidden_size": 48,
            "sliding_window": 5,
            "original_max_position_embeddings": 32,
            "rope_parameters": {**LONG, "partial_rotary_factor": 0.75},
        },
    ),
    "gpt2": ("gpt2", {"vocab_size": 41, "n_embd": 20, "n_layer": 3, "n_head": 5, "n_positions": 32}),
    "gpt2, scaled by layer, untied": (
        "gpt2",
        {
            "vocab_size": 41,
            "n_embd": 12,
            "n_layer": 3,
            "n_head": 2,
            "n_inner": 17,
            "n_positions": 16,
            "scale_attn_by_inverse_layer_idx": True,
            "tie_word_embeddings": False,
        },
    ),
    "opt": ("opt", OPT),
    "opt, without biases, untied": ("opt", {**OPT, "enable_bias": False, "tie_word_embeddings": False}),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    model_type, fields = CASES[request.param]
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return make_pair(CONFIG_MAPPING[model_type](**{**tokens, **fields}), tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("side", ["right", "left"])
def test_states_and_logits_are_those_of_transformers(pair, side):
    check_states(pair, RIGHT if side == "right" else RIGHT[:, ::-1], atol=1e-5)


def test_gradients_are_those_of_transformers(pair):
    check_gradients(pair, RIGHT)


def test_states_do_not_depend_on_the_side_of_padding(pair):
    lengths = RIGHT.sum(1)
    texts = [np.random.default_rng(i).integers(3, 41, n) for i, n in enumerate(lengths)]
    right = np.stack([np.pad(t, (0, 13 - len(t))) for t in texts])
    left = np.stack([np.pad(t, (15 - len(t), 0)) for t in texts])
    mask = np.arange(15) >= 15 - lengths[:, None]
    ours = np.asarray(pair.decoder.apply({"params": pair.params}, right, RIGHT))
    theirs = np.asarray(pair.decoder.apply({"params": pair.params}, left, mask))
    np.testing.assert_allclose(ours[RIGHT], theirs[mask], atol=1e-5)


def test_a_folder_of_ours_is_opened_by_transformers(pair, tmp_path):
    folder = save(tmp_path / "ours", pair.decoder, pair.params)
    model, report = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not any(report.values()), report
    check_states(pair._replace(torch=model.eval()), RIGHT, atol=1e-5)
    decoder, params = load(folder, language_head=True)
    assert decoder.config == pair.decoder.config
    for name, array in flatten(params).items():
        np.testing.assert_array_equal(array, flatten(pair.params)[name], err_msg=name)


def test_without_its_head_a_model_has_no_logits(pair):
    decoder, params = load(pair.folder)
    mask = RIGHT[:2]
    ids = np.ones(mask.shape, int)
    states = decoder.apply({"params": params}, ids, mask)
    assert "lm_head" not in params
    if decoder.config.tie_word_embeddings:
        assert decoder.apply({"params": params}, states, method="logits").shape == (2, 13, 41)
    else:
        with pytest.raises(ValueError, match="without its head: load it with language_head=True"):
            decoder.apply({"params": params}, states, method="logits")


def test_an_older_config_says_the_same(pair, tmp_path):
    raw = json.loads((pair.folder / "config.json").read_text())
    if "rope_parameters" not in raw or "full_attention" in raw["rope_parameters"]:
        pytest.skip("has no older form of this kind")
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    raw["rope_scaling"] = None if rope["rope_type"] == "default" else {"type": rope.pop("rope_type"), **rope}
    from llm4rec_jax.models.encoders.huggingface import read_config

    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert read_config(tmp_path) == read_config(pair.folder)
