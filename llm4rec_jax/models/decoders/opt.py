"""OPT (Zhang et al. 2022, arXiv 2205.01068), but for its 350M model, which has its norms after the sublayers."""

from collections.abc import Mapping
from typing import Any

from llm4rec_jax.models.decoders.config import DecoderConfig, decoder_config, decoder_config_to_hf
from llm4rec_jax.models.decoders.decoder import Decoder
from llm4rec_jax.models.encoders.base import Family, register
from llm4rec_jax.models.encoders.config_json import refuse
from llm4rec_jax.models.encoders.weights import Rule, embedding, linear, norm

_RENAMED = {
    "intermediate_size": "ffn_dim",
    "hidden_act": "activation_function",
    "hidden_dropout_prob": "dropout",
    "initializer_range": "init_std",
}


def _from_hf(raw: Mapping[str, Any]) -> DecoderConfig:
    defaults = {"max_position_embeddings": 2048, "activation_function": "relu", "dropout": 0.1, "pad_token_id": 1}
    raw = {**defaults, "tie_word_embeddings": True, **raw}
    refuse(
        raw,
        do_layer_norm_before=True,
        _remove_final_layer_norm=False,
        layer_norm_elementwise_affine=True,
        word_embed_proj_dim=raw.get("hidden_size"),
    )
    bias = raw.get("enable_bias", True)
    return decoder_config(
        raw,
        _RENAMED,
        model_type="opt",
        gated=False,
        norm="layer",
        # Not in the config: torch's default.
        norm_eps=1e-5,
        learned_positions=True,
        position_offset=2,
        query_bias=bias,
        output_bias=bias,
        ffn_bias=bias,
    )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
    left_out = dict.fromkeys(("num_key_value_heads", "head_dim", "norm_eps"), "")
    return decoder_config_to_hf(config, "OPT", {**_RENAMED, **left_out}, enable_bias=config.query_bias)


_BLOCK = "decoder.layers.{i}"

register(
    Family(
        model_type="opt",
        build=Decoder,
        config_from_hf=_from_hf,
        config_to_hf=_to_hf,
        weight_rules=(
            *embedding("decoder.embed_tokens", "embeddings/word"),
            *embedding("decoder.embed_positions", "embeddings/position"),
            *norm("decoder.final_layer_norm", "final_norm"),
            Rule("lm_head.weight", ("lm_head/kernel",), transpose=True, optional=True),
            *norm(f"{_BLOCK}.self_attn_layer_norm", "layer_{i}/attention_norm"),
            *norm(f"{_BLOCK}.final_layer_norm", "layer_{i}/ffn_norm"),
            *linear(f"{_BLOCK}.self_attn.q_proj", "layer_{i}/attention/query"),
            *linear(f"{_BLOCK}.self_attn.k_proj", "layer_{i}/attention/key"),
            *linear(f"{_BLOCK}.self_attn.v_proj", "layer_{i}/attention/value"),
            *linear(f"{_BLOCK}.self_attn.out_proj", "layer_{i}/attention/output"),
            *linear(f"{_BLOCK}.fc1", "layer_{i}/ffn/up"),
            *linear(f"{_BLOCK}.fc2", "layer_{i}/ffn/down"),
        ),
        prefixes=("model.",),
        target_modules=("q_proj", "v_proj"),
        causal=True,
        pooling="last",
    )
)
