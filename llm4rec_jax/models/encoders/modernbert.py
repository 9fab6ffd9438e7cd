"""ModernBERT (Warner et al. 2024, arXiv 2412.13663): the decoders' definition, read in both directions.

Its fused projections are taken apart, so that methods reach each.
"""

from collections.abc import Mapping
from typing import Any

from llm4rec_jax.models.decoders.config import (
    FULL,
    SLIDING,
    DecoderConfig,
    decoder_config,
    decoder_config_to_hf,
    read_ropes,
    read_windows,
    rope_fields,
)
from llm4rec_jax.models.decoders.decoder import Decoder
from llm4rec_jax.models.encoders.base import Family, Sites, megatron_rules, register
from llm4rec_jax.models.encoders.weights import embedding, linear, norm

# An empty name: `config.json` has no such field. The word embeddings are tied to a head that predicts masked tokens.
_RENAMED = {
    "hidden_act": "hidden_activation",
    "norm_eps": "norm_eps",
    "hidden_dropout_prob": "mlp_dropout",
    "num_key_value_heads": "",
    "head_dim": "",
    "tie_word_embeddings": "",
}
_DEFAULTS = {
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "pad_token_id": 50283,
    "bos_token_id": 50281,
    "eos_token_id": 50282,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
}


def _from_hf(raw: Mapping[str, Any]) -> DecoderConfig:
    raw = {**_DEFAULTS, **raw}
    for name in ("local_attention", "global_attn_every_n_layers"):
        if not isinstance(raw[name], int) or raw[name] < 1:
            raise ValueError(f"{name} is {raw[name]!r}, must be an integer of at least 1")
    if (embedded := raw.get("embedding_dropout") or 0.0) != (raw.get("mlp_dropout") or 0.0):
        raise ValueError(f"embedding_dropout is {embedded}, but only the rate of mlp_dropout is supported")
    every, thetas = raw["global_attn_every_n_layers"], (raw["global_rope_theta"], raw["local_rope_theta"])
    # Half of the local tokens lie on either side, and the token itself is one more.
    windows = read_windows(
        {**raw, "sliding_window": raw["local_attention"] // 2 + 1},
        tuple(SLIDING if i % every else FULL for i in range(raw.get("num_hidden_layers") or 0)),
    )
    bias = bool(raw.get("attention_bias"))
    return decoder_config(
        raw,
        _RENAMED,
        model_type="modernbert",
        causal=False,
        norm="layer",
        norm_bias=bool(raw["norm_bias"]),
        embedding_norm=True,
        query_bias=bias,
        output_bias=bias,
        ffn_bias=bool(raw.get("mlp_bias")),
        tie_word_embeddings=False,
        **read_ropes(
            {**raw, "rope_theta": thetas[0], "rope_local_base_freq": thetas[1] or thetas[0]}, scaled=(FULL, SLIDING)
        ),
        **windows,
    )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
    ropes = {FULL: config.rope, SLIDING: config.rope_of(SLIDING)}
    window = {} if config.sliding_window is None else {"local_attention": 2 * (config.sliding_window - 1)}
    return decoder_config_to_hf(
        config,
        "ModernBert",
        _RENAMED,
        embedding_dropout=config.hidden_dropout_prob,
        norm_bias=config.norm_bias,
        attention_bias=config.query_bias,
        mlp_bias=config.ffn_bias,
        layer_types=list(config.layer_types or (FULL,) * config.num_hidden_layers),
        rope_parameters={kind: rope_fields(rope)["rope_parameters"] for kind, rope in ropes.items()},
        global_rope_theta=ropes[FULL].rope_theta,
        local_rope_theta=ropes[SLIDING].rope_theta,
        **window,
    )


register(
    Family(
        model_type="modernbert",
        build=Decoder,
        config_from_hf=_from_hf,
        config_to_hf=_to_hf,
        weight_rules=(
            *embedding("embeddings.tok_embeddings", "embeddings/word"),
            *norm("embeddings.norm", "embeddings/norm"),
            *norm("layers.{i}.attn_norm", "layer_{i}/attention_norm"),
            *linear("layers.{i}.attn.Wqkv", *(f"layer_{{i}}/attention/{name}" for name in ("query", "key", "value"))),
            *linear("layers.{i}.attn.Wo", "layer_{i}/attention/output"),
            *norm("layers.{i}.mlp_norm", "layer_{i}/ffn_norm"),
            *linear("layers.{i}.mlp.Wi", "layer_{i}/ffn/gate", "layer_{i}/ffn/up"),
            *linear("layers.{i}.mlp.Wo", "layer_{i}/ffn/down"),
            *norm("final_norm", "final_norm"),
        ),
        prefixes=("model.",),
        dropped=(r"(?:head|decoder|classifier)\..*",),
        sites=Sites(gate="ffn/gate"),
        past_keys=False,
        sharding_rules=megatron_rules(bias=False),
    )
)
