"""Phi-3 (Abdin et al. 2024, arXiv 2404.14219). Its fused projections are taken apart, so that methods reach each."""

from collections.abc import Mapping
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
from llm4rec_jax.models.decoders.llama import ENDS, NORMS, family
from llm4rec_jax.models.encoders.base import register
from llm4rec_jax.models.encoders.weights import linear

_RENAMED = {"hidden_dropout_prob": "resid_pdrop"}


def _from_hf(raw: Mapping[str, Any]) -> DecoderConfig:
    defaults = {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    raw = {
        **defaults,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        **raw,
        "head_dim": None,
        "layer_types": None,
    }
    if (embedded := raw.get("embd_pdrop") or 0.0) != (raw.get("resid_pdrop") or 0.0):
        raise ValueError(f"embd_pdrop is {embedded}, but only the rate of resid_pdrop is supported")
    sliding = (SLIDING,) * raw["num_hidden_layers"] if raw.get("sliding_window") else ()
    return decoder_config(
        raw, _RENAMED, model_type="phi3", rope=read_rope(raw, partial=True), **read_windows(raw, sliding)
    )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
    rope, fields = config.rope, rope_fields(config.rope)
    return decoder_config_to_hf(
        config,
        "Phi3",
        {**_RENAMED, "head_dim": ""},
        embd_pdrop=config.hidden_dropout_prob,
        sliding_window=config.sliding_window,
        partial_rotary_factor=rope.partial_rotary_factor,
        original_max_position_embeddings=rope.original_max_position_embeddings or config.max_position_embeddings,
        **fields,
    )


register(
    family(
        model_type="phi3",
        config_from_hf=_from_hf,
        config_to_hf=_to_hf,
        weight_rules=(
            *ENDS,
            *NORMS,
            *linear(
                "layers.{i}.self_attn.qkv_proj",
                *(f"layer_{{i}}/attention/{name}" for name in ("query", "key", "value")),
                bias=False,
            ),
            *linear("layers.{i}.self_attn.o_proj", "layer_{i}/attention/output", bias=False),
            *linear("layers.{i}.mlp.gate_up_proj", "layer_{i}/ffn/gate", "layer_{i}/ffn/up", bias=False),
            *linear("layers.{i}.mlp.down_proj", "layer_{i}/ffn/down", bias=False),
        ),
        target_modules=("qkv_proj",),
    )
)
