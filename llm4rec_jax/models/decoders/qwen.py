"""Qwen2 and 2.5 (Yang et al. 2024, arXiv 2412.15115) and Qwen3 (arXiv 2505.09388)."""

from collections.abc import Mapping
from typing import Any

from llm4rec_jax.models.decoders.config import (
    FULL,
    SLIDING,
    DecoderConfig,
    decoder_config,
    decoder_config_to_hf,
    read_rope,
    read_windows,
    rope_fields,
)
from llm4rec_jax.models.decoders.llama import ENDS, NORMS, PROJECTIONS, family
from llm4rec_jax.models.encoders.base import megatron_rules, register
from llm4rec_jax.models.encoders.weights import norm

_DEFAULTS = {"rope_theta": 10_000.0, "max_position_embeddings": 32768, "tie_word_embeddings": False}


def _windows(raw: Mapping[str, Any]) -> dict[str, Any]:
    if not raw.get("use_sliding_window"):
        return read_windows({**raw, "sliding_window": None}, ())
    raw = {"sliding_window": 4096, "max_window_layers": 28, **raw}
    first = raw["num_hidden_layers"] if raw["sliding_window"] is None else raw["max_window_layers"]
    return read_windows(raw, tuple(FULL if i < first else SLIDING for i in range(raw["num_hidden_layers"])))


def _qwen2(raw: Mapping[str, Any]) -> DecoderConfig:
    raw = {**_DEFAULTS, **raw, "head_dim": None}
    return decoder_config(raw, model_type="qwen2", rope=read_rope(raw), query_bias=True, **_windows(raw))


def _qwen3(raw: Mapping[str, Any]) -> DecoderConfig:
    raw = {**_DEFAULTS, "head_dim": 128, **raw}
    bias = bool(raw.get("attention_bias"))
    return decoder_config(
        raw,
        model_type="qwen3",
        rope=read_rope(raw),
        qk_norm=True,
        query_bias=bias,
        output_bias=bias,
        **_windows(raw),
    )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
    types = config.layer_types or (FULL,) * config.num_hidden_layers
    windows = {
        "use_sliding_window": SLIDING in types,
        "sliding_window": config.sliding_window,
        "max_window_layers": types.index(SLIDING) if SLIDING in types else config.num_hidden_layers,
        "layer_types": list(types),
    }
    if config.model_type == "qwen2":
        return decoder_config_to_hf(config, "Qwen2", {"head_dim": ""}, **windows, **rope_fields(config.rope))
    bias = {"attention_bias": config.query_bias}
    return decoder_config_to_hf(config, "Qwen3", **bias, **windows, **rope_fields(config.rope))


register(family(model_type="qwen2", config_from_hf=_qwen2, config_to_hf=_to_hf, sharding_rules=megatron_rules()))
register(
    family(
        model_type="qwen3",
        config_from_hf=_qwen3,
        config_to_hf=_to_hf,
        weight_rules=(
            *ENDS,
            *NORMS,
            *PROJECTIONS,
            *norm("layers.{i}.self_attn.q_norm", "layer_{i}/attention/query_norm", bias=False),
            *norm("layers.{i}.self_attn.k_norm", "layer_{i}/attention/key_norm", bias=False),
        ),
    )
)
