"""GPT-2 (Radford et al. 2019). Its fused `c_attn` is taken apart, so that methods reach query, key and value."""

from collections.abc import Mapping
from typing import Any

from llm4rec_jax.models.decoders.config import DecoderConfig, decoder_config, decoder_config_to_hf
from llm4rec_jax.models.decoders.decoder import Decoder
from llm4rec_jax.models.encoders.base import Family, register
from llm4rec_jax.models.encoders.config_json import refuse
from llm4rec_jax.models.encoders.weights import Rule, embedding, linear, norm

_RENAMED = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "hidden_act": "activation_function",
    "norm_eps": "layer_norm_epsilon",
    "hidden_dropout_prob": "resid_pdrop",
    "attention_probs_dropout_prob": "attn_pdrop",
}


def _from_hf(raw: Mapping[str, Any]) -> DecoderConfig:
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1)
    defaults = {"n_positions": 1024, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, **rates}
    raw = {**defaults, "tie_word_embeddings": True, **raw}
    # transformers reads both names of a field.
    others = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    raw |= {name: raw[other] for other, name in others.items() if other in raw}
    refuse(raw, add_cross_attention=False, embd_pdrop=raw["resid_pdrop"])
    if raw.get("n_inner") is None and raw.get("n_embd") is not None:
        raw["n_inner"] = 4 * raw["n_embd"]
    return decoder_config(
        raw,
        _RENAMED,
        model_type="gpt2",
        gated=False,
        norm="layer",
        learned_positions=True,
        query_bias=True,
        output_bias=True,
        ffn_bias=True,
        attention_scale=1.0 if raw.get("scale_attn_weights") is False else None,
        inverse_layer_scale=bool(raw.get("scale_attn_by_inverse_layer_idx")),
    )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
    fields = decoder_config_to_hf(
        config,
        "GPT2",
        {**_RENAMED, "num_key_value_heads": "", "head_dim": ""},
        embd_pdrop=config.hidden_dropout_prob,
        scale_attn_weights=config.attention_scale is None,
        scale_attn_by_inverse_layer_idx=config.inverse_layer_scale,
    )
    return {**fields, "architectures": [fields["architectures"][0].replace("ForCausalLM", "LMHeadModel")]}


register(
    Family(
        model_type="gpt2",
        build=Decoder,
        config_from_hf=_from_hf,
        config_to_hf=_to_hf,
        weight_rules=(
            *embedding("wte", "embeddings/word"),
            *embedding("wpe", "embeddings/position"),
            *norm("ln_f", "final_norm"),
            Rule("lm_head.weight", ("lm_head/kernel",), transpose=True, optional=True),
            *norm("h.{i}.ln_1", "layer_{i}/attention_norm"),
            *norm("h.{i}.ln_2", "layer_{i}/ffn_norm"),
            # `Conv1D` holds its matrix as [in, out].
            *linear(
                "h.{i}.attn.c_attn",
                *(f"layer_{{i}}/attention/{name}" for name in ("query", "key", "value")),
                transpose=False,
            ),
            *linear("h.{i}.attn.c_proj", "layer_{i}/attention/output", transpose=False),
            *linear("h.{i}.mlp.c_fc", "layer_{i}/ffn/up", transpose=False),
            *linear("h.{i}.mlp.c_proj", "layer_{i}/ffn/down", transpose=False),
        ),
        prefixes=("transformer.",),
        # Masks that old versions of transformers saved.
        dropped=(r"h\.\d+\.attn\.(masked_)?bias",),
        target_modules=("c_attn",),
        causal=True,
        pooling="last",
    )
)
