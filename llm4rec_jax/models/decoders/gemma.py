"""Gemma 1 (Mesnard et al. 2024, arXiv 2403.08295), 2 (arXiv 2408.00118), and the text model of 3 (arXiv 2503.19786).

The text model of Gemma 3 without its causal mask is EmbeddingGemma.
"""

from collections.abc import Mapping
from typing import Any

from llm4rec_jax.models.decoders.config import (
    FULL,
    SLIDING,
    DecoderConfig,
    decoder_config,
    decoder_config_to_hf,
    read_rope,
    read_ropes,
    read_windows,
    rope_fields,
)
from llm4rec_jax.models.decoders.llama import ENDS, PROJECTIONS, family
from llm4rec_jax.models.encoders.base import Sites, register
from llm4rec_jax.models.encoders.config_json import refuse
from llm4rec_jax.models.encoders.weights import norm

_DEFAULTS = {"rope_theta": 10_000.0, "head_dim": 256, "tie_word_embeddings": True, "pad_token_id": 0}
_NORMS = (
    *norm("layers.{i}.input_layernorm", "layer_{i}/attention_norm", bias=False),
    *norm("layers.{i}.post_attention_layernorm", "layer_{i}/attention_post_norm", bias=False),
    *norm("layers.{i}.pre_feedforward_layernorm", "layer_{i}/ffn_norm", bias=False),
    *norm("layers.{i}.post_feedforward_layernorm", "layer_{i}/ffn_post_norm", bias=False),
)
_SITES = Sites(gate="ffn/gate", norms=("attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm"))
_ACTIVATION = {"hidden_act": "hidden_activation"}


def _shared(raw: Mapping[str, Any]) -> dict[str, Any]:
    bias = bool(raw.get("attention_bias"))
    return {
        "norm": "rms_offset",
        "embedding_scale": raw["hidden_size"] ** 0.5,
        "query_bias": bias,
        "output_bias": bias,
    }


def _normed_twice(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Switches that Gemma 2 and 3 share."""
    return {
        **_shared(raw),
        "post_norms": True,
        "attention_scale": raw.get("query_pre_attn_scalar", 256) ** -0.5,
        "logit_softcap": raw.get("final_logit_softcapping"),
    }


def _gemma(raw: Mapping[str, Any]) -> DecoderConfig:
    raw = {**_DEFAULTS, "max_position_embeddings": 8192, "hidden_act": "gelu_pytorch_tanh", **raw}
    refuse(raw, use_bidirectional_attention=False)
    # The first configs say "gelu", or leave `hidden_activation` empty, and mean the tanh form.
    act = raw.get("hidden_activation") or raw["hidden_act"]
    act = "gelu_pytorch_tanh" if act == "gelu" else act
    return decoder_config(raw, model_type="gemma", rope=read_rope(raw), hidden_act=act, **_shared(raw))


def _gemma2(raw: Mapping[str, Any]) -> DecoderConfig:
    defaults = {
        **_DEFAULTS,
        "max_position_embeddings": 8192,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }
    raw = {**defaults, **raw}
    refuse(raw, use_bidirectional_attention=False)
    windows = read_windows(raw, tuple(FULL if i % 2 else SLIDING for i in range(raw["num_hidden_layers"])))
    return decoder_config(
        raw,
        _ACTIVATION,
        model_type="gemma2",
        rope=read_rope(raw),
        attention_softcap=raw["attn_logit_softcapping"],
        **windows,
        **_normed_twice(raw),
    )


def _gemma3(raw: Mapping[str, Any]) -> DecoderConfig:
    defaults = {
        **_DEFAULTS,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "max_position_embeddings": 131072,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
    }
    raw = {**defaults, **raw}
    # transformers has the key and does without it.
    refuse(raw, attn_logit_softcapping=None)
    every = raw["sliding_window_pattern"]
    windows = read_windows(raw, tuple(SLIDING if (i + 1) % every else FULL for i in range(raw["num_hidden_layers"])))
    bidirectional = bool(raw.get("use_bidirectional_attention"))
    if bidirectional and windows["sliding_window"]:
        windows["sliding_window"] = windows["sliding_window"] // 2 + 1
    return decoder_config(
        raw,
        _ACTIVATION,
        model_type="gemma3_text",
        qk_norm=True,
        causal=not bidirectional,
        **read_ropes(raw),
        **windows,
        **_normed_twice(raw),
    )


def _gemma_to_hf(config: DecoderConfig) -> dict[str, Any]:
    act = {"hidden_activation": config.hidden_act, "attention_bias": config.query_bias}
    return decoder_config_to_hf(config, "Gemma", **act, **rope_fields(config.rope))


def _later_to_hf(config: DecoderConfig) -> dict[str, Any]:
    window = config.sliding_window
    fields = {
        "attention_bias": config.query_bias,
        "query_pre_attn_scalar": round((config.attention_scale or 1.0) ** -2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "layer_types": list(config.layer_types or (FULL,) * config.num_hidden_layers),
        "sliding_window": window if window is None or config.causal else 2 * (window - 1),
        "use_bidirectional_attention": not config.causal,
        **rope_fields(config.rope),
    }
    if config.model_type == "gemma2":
        return decoder_config_to_hf(config, "Gemma2", _ACTIVATION, **fields)
    local = rope_fields(config.rope_of(SLIDING))
    fields["rope_parameters"] = {FULL: fields["rope_parameters"], SLIDING: local["rope_parameters"]}
    fields["rope_local_base_freq"] = local["rope_theta"]
    return decoder_config_to_hf(config, "Gemma3", _ACTIVATION, **fields)


register(family(model_type="gemma", config_from_hf=_gemma, config_to_hf=_gemma_to_hf))
register(
    family(
        model_type="gemma2",
        config_from_hf=_gemma2,
        config_to_hf=_later_to_hf,
        weight_rules=(*ENDS, *_NORMS, *PROJECTIONS),
        sites=_SITES,
    )
)
register(
    family(
        model_type="gemma3_text",
        config_from_hf=_gemma3,
        config_to_hf=_later_to_hf,
        weight_rules=(
            *ENDS,
            *_NORMS,
            *PROJECTIONS,
            *norm("layers.{i}.self_attn.q_norm", "layer_{i}/attention/query_norm", bias=False),
            *norm("layers.{i}.self_attn.k_norm", "layer_{i}/attention/key_norm", bias=False),
        ),
        sites=_SITES,
    )
)
