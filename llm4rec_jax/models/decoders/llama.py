"""Llama 2 and 3 (Touvron et al. 2023, arXiv 2307.09288), with TinyLlama and SmolLM2; Mistral (arXiv 2310.06825)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from llm4rec_jax.models.decoders.config import (
    SLIDING,
    DecoderConfig,
    decoder_config,
    decoder_config_to_hf,
    read_rope,
    read_windows,
    rope_fields,
)
from llm4rec_jax.models.decoders.decoder import Decoder
from llm4rec_jax.models.encoders.base import Family, Sites, megatron_rules, register
from llm4rec_jax.models.encoders.weights import Rule, embedding, linear, norm

ENDS: tuple[Rule, ...] = (
    *embedding("embed_tokens", "embeddings/word"),
    *norm("norm", "final_norm", bias=False),
    Rule("lm_head.weight", ("lm_head/kernel",), transpose=True, optional=True),
)
"""Tensors before and after the blocks."""

NORMS: tuple[Rule, ...] = (
    *norm("layers.{i}.input_layernorm", "layer_{i}/attention_norm", bias=False),
    *norm("layers.{i}.post_attention_layernorm", "layer_{i}/ffn_norm", bias=False),
)
"""Norms of a block."""

PROJECTIONS: tuple[Rule, ...] = (
    *linear("layers.{i}.self_attn.q_proj", "layer_{i}/attention/query"),
    *linear("layers.{i}.self_attn.k_proj", "layer_{i}/attention/key"),
    *linear("layers.{i}.self_attn.v_proj", "layer_{i}/attention/value"),
    *linear("layers.{i}.self_attn.o_proj", "layer_{i}/attention/output"),
    *linear("layers.{i}.mlp.gate_proj", "layer_{i}/ffn/gate"),
    *linear("layers.{i}.mlp.up_proj", "layer_{i}/ffn/up"),
    *linear("layers.{i}.mlp.down_proj", "layer_{i}/ffn/down"),
)
"""Projections of a block."""

family = partial(
    Family,
    build=Decoder,
    weight_rules=(*ENDS, *NORMS, *PROJECTIONS),
    prefixes=("model.",),
    # Buffers that old versions of transformers saved.
    dropped=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    sites=Sites(gate="ffn/gate"),
    target_modules=("q_proj", "v_proj"),
    sharding_rules=megatron_rules(bias=False),
    causal=True,
    pooling="last",
)
"""The record of a family whose tensors are named as Llama's."""


def _llama(raw: Mapping[str, Any]) -> DecoderConfig:
    raw = {"rope_theta": 10_000.0, "max_position_embeddings": 2048, "tie_word_embeddings": False, **raw}
    bias = bool(raw.get("attention_bias"))
    return decoder_config(
        raw,
        model_type="llama",
        rope=read_rope(raw),
        query_bias=bias,
        output_bias=bias,
        ffn_bias=bool(raw.get("mlp_bias")),
    )


def _llama_to_hf(config: DecoderConfig) -> dict[str, Any]:
    biases = {"attention_bias": config.query_bias, "mlp_bias": config.ffn_bias}
    return decoder_config_to_hf(config, "Llama", **biases, **rope_fields(config.rope))


def _mistral(raw: Mapping[str, Any]) -> DecoderConfig:
    defaults = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}
    raw = {**defaults, "rope_theta": 10_000.0, "tie_word_embeddings": False, **raw, "layer_types": None}
    sliding = (SLIDING,) * raw["num_hidden_layers"] if raw["sliding_window"] else ()
    return decoder_config(raw, model_type="mistral", rope=read_rope(raw), **read_windows(raw, sliding))


def _mistral_to_hf(config: DecoderConfig) -> dict[str, Any]:
    return decoder_config_to_hf(config, "Mistral", sliding_window=config.sliding_window, **rope_fields(config.rope))


register(family(model_type="llama", config_from_hf=_llama, config_to_hf=_llama_to_hf))
register(family(model_type="mistral", config_from_hf=_mistral, config_to_hf=_mistral_to_hf))
