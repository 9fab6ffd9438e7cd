"""NomicBERT (Nussbaum et al. 2024, arXiv 2402.01613): BERT with rotary positions and SwiGLU, without linear biases.

Two formats are read: that of transformers, which is written too, and that of the published folders and their own code.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from llm4rec_jax.models.decoders.config import (
    DecoderConfig,
    decoder_config,
    decoder_config_to_hf,
    read_rope,
    rope_fields,
)
from llm4rec_jax.models.decoders.decoder import Decoder
from llm4rec_jax.models.encoders.base import Family, Sites, megatron_rules, register
from llm4rec_jax.models.encoders.config_json import refuse
from llm4rec_jax.models.encoders.weights import Rule, embedding, linear, norm

# An empty name: `config.json` has no such field. The word embeddings are tied to a head that predicts masked tokens.
_RENAMED = {
    "norm_eps": "layer_norm_eps",
    "hidden_dropout_prob": "hidden_dropout_prob",
    "attention_probs_dropout_prob": "attention_probs_dropout_prob",
    "type_vocab_size": "type_vocab_size",
    "num_key_value_heads": "",
    "tie_word_embeddings": "",
}
_DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "rope_theta": 1000.0,
}
_PUBLISHED_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_trained_positions",
    "type_vocab_size": "type_vocab_size",
    "layer_norm_eps": "layer_norm_epsilon",
    "hidden_dropout_prob": "resid_pdrop",
    "attention_probs_dropout_prob": "attn_pdrop",
    "initializer_range": "initializer_range",
    "rope_theta": "rotary_emb_base",
    "pad_token_id": "pad_token_id",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
}
# Those of the published code, which asks for more than is supported unless it is told otherwise.
_PUBLISHED_DEFAULTS = {
    "max_trained_positions": 2048,
    "layer_norm_epsilon": 1e-5,
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "activation_function": "gelu_new",
    "qkv_proj_bias": True,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "rotary_emb_fraction": 0.0,
    "rotary_emb_base": 10_000,
}


def _from_published(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of transformers' `config.json` from those of a published folder."""
    raw = {**_PUBLISHED_DEFAULTS, **raw}
    if missing := [name for name in ("n_embd", "n_layer", "n_head", "n_inner", "vocab_size") if raw.get(name) is None]:
        raise ValueError(f"{', '.join(missing)} is missing")
    refuse(
        raw,
        num_experts=0,
        activation_function="swiglu",
        qkv_proj_bias=False,
        mlp_fc1_bias=False,
        mlp_fc2_bias=False,
        rotary_emb_fraction=1.0,
        rotary_emb_interleaved=False,
        rotary_emb_scale_base=None,
        prenorm=False,
        parallel_block=False,
        use_rms_norm=False,
        causal=False,
        num_heads_kv=raw["n_head"],
    )
    fields = {name: raw[published] for name, published in _PUBLISHED_NAMES.items() if raw.get(published) is not None}
    if raw.get("rotary_scaling_factor"):
        fields["rope_parameters"] = {"rope_type": "dynamic", "factor": raw["rotary_scaling_factor"]}
    return fields


def _from_hf(raw: Mapping[str, Any]) -> DecoderConfig:
    published = "n_embd" in raw and "hidden_size" not in raw
    fields = {**_DEFAULTS, **(_from_published(raw) if published else raw)}
    config = decoder_config(
        {**fields, "quantization_config": raw.get("quantization_config")},
        _RENAMED,
        model_type="nomic_bert",
        causal=False,
        norm="layer",
        pre_norm=False,
        embedding_norm=True,
        tie_word_embeddings=False,
        rope=read_rope(fields),
    )
    if not published:
        return config

    def padded(size: int, multiple: int) -> int:
        return -(-size // multiple) * multiple

    # The published code pads the vocabulary as it is told, and the feed-forward network always.
    rows = padded(config.vocab_size, raw.get("pad_vocab_size_multiple") or 1)
    return dataclasses.replace(config, vocab_size=rows, intermediate_size=padded(config.intermediate_size, 256))


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
    return decoder_config_to_hf(config, "NomicBert", _RENAMED, **rope_fields(config.rope))


_WRITTEN: tuple[Rule, ...] = (
    *embedding("embeddings.word_embeddings", "embeddings/word"),
    *embedding("embeddings.token_type_embeddings", "embeddings/token_type"),
    *norm("embeddings.LayerNorm", "embeddings/norm"),
    *linear("layers.{i}.self_attn.q_proj", "layer_{i}/attention/query", bias=False),
    *linear("layers.{i}.self_attn.k_proj", "layer_{i}/attention/key", bias=False),
    *linear("layers.{i}.self_attn.v_proj", "layer_{i}/attention/value", bias=False),
    *linear("layers.{i}.self_attn.o_proj", "layer_{i}/attention/output", bias=False),
    *norm("layers.{i}.post_attention_layernorm", "layer_{i}/attention_norm"),
    *linear("layers.{i}.mlp.gate_proj", "layer_{i}/ffn/gate", bias=False),
    *linear("layers.{i}.mlp.up_proj", "layer_{i}/ffn/up", bias=False),
    *linear("layers.{i}.mlp.down_proj", "layer_{i}/ffn/down", bias=False),
    *norm("layers.{i}.post_mlp_layernorm", "layer_{i}/ffn_norm"),
)
# The first rule of a parameter names the tensor that is written, so these are only read.
_PUBLISHED: tuple[Rule, ...] = (
    *norm("emb_ln", "embeddings/norm"),
    *linear(
        "encoder.layers.{i}.attn.Wqkv",
        *(f"layer_{{i}}/attention/{name}" for name in ("query", "key", "value")),
        bias=False,
    ),
    *linear("encoder.layers.{i}.attn.out_proj", "layer_{i}/attention/output", bias=False),
    *norm("encoder.layers.{i}.norm1", "layer_{i}/attention_norm"),
    *linear("encoder.layers.{i}.mlp.fc11", "layer_{i}/ffn/up", bias=False),
    *linear("encoder.layers.{i}.mlp.fc12", "layer_{i}/ffn/gate", bias=False),
    *linear("encoder.layers.{i}.mlp.fc2", "layer_{i}/ffn/down", bias=False),
    *norm("encoder.layers.{i}.norm2", "layer_{i}/ffn_norm"),
)

register(
    Family(
        model_type="nomic_bert",
        build=Decoder,
        config_from_hf=_from_hf,
        config_to_hf=_to_hf,
        weight_rules=(*_WRITTEN, *_PUBLISHED),
        prefixes=("nomic_bert.", "bert."),
        dropped=(r"(?:pooler|cls|classifier)\..*",),
        sites=Sites(gate="ffn/gate"),
        past_keys=False,
        unused_modules=("pooler.dense",),
        sharding_rules=megatron_rules(bias=False),
    )
)
