"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): ViT with factors of the sublayers' outputs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from llm4rec_jax.models.encoders.config_json import config_fields, refuse
from llm4rec_jax.models.encoders.weights import Rule, linear, norm
from llm4rec_jax.models.vision.base import NOT_IN_FILES, VisionConfig, VisionFamily, register
from llm4rec_jax.models.vision.encoder import VisionEncoder
from llm4rec_jax.models.vision.vit import ATTENTION_RULES, EMBEDDING_RULES

GATED = "dinov2_swiglu"
"""The family with a gate in its feed-forward networks; `config.json` calls both "dinov2"."""
NAMES = {**NOT_IN_FILES, "intermediate_size": "", "pooler_act": ""}


def config_from_hf(raw: Mapping[str, Any]) -> VisionConfig:
    """The configuration from the fields of `config.json`."""
    refuse(raw, drop_path_rate=0.0)
    fields = config_fields(VisionConfig, raw, **NAMES)
    hidden = int(fields.get("hidden_size", 768) * raw.get("mlp_ratio", 4))
    fields = {"layerscale_value": 1.0, "layer_norm_eps": 1e-6, **fields}
    if raw.get("use_swiglu_ffn"):
        # Two thirds of the width, rounded up to a multiple of 8, as there are three matrices in place of two.
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        return VisionConfig(
            **{**fields, "model_type": GATED, "gated": True, "hidden_act": "silu", "intermediate_size": hidden}
        )
    return VisionConfig(model_type="dinov2", intermediate_size=hidden, **fields)


def _rules(ffn: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return (
        *EMBEDDING_RULES,
        *ATTENTION_RULES,
        *ffn,
        *norm("encoder.layer.{i}.norm1", "layer_{i}/attention_norm"),
        *norm("encoder.layer.{i}.norm2", "layer_{i}/ffn_norm"),
        Rule("encoder.layer.{i}.layer_scale1.lambda1", ("layer_{i}/attention_scale",)),
        Rule("encoder.layer.{i}.layer_scale2.lambda1", ("layer_{i}/ffn_scale",)),
    )


DINOV2 = register(
    VisionFamily(
        model_type="dinov2",
        build=VisionEncoder,
        config_from_hf=config_from_hf,
        weight_rules=_rules(
            (
                *linear("encoder.layer.{i}.mlp.fc1", "layer_{i}/ffn/up"),
                *linear("encoder.layer.{i}.mlp.fc2", "layer_{i}/ffn/down"),
            )
        ),
        prefixes=("dinov2.",),
        dropped=(r"embeddings\.mask_token", r"classifier\..*"),
    )
)
DINOV2_SWIGLU = register(
    dataclasses.replace(
        DINOV2,
        model_type=GATED,
        weight_rules=_rules(
            (
                *linear("encoder.layer.{i}.mlp.weights_in", "layer_{i}/ffn/gate", "layer_{i}/ffn/up"),
                *linear("encoder.layer.{i}.mlp.weights_out", "layer_{i}/ffn/down"),
            )
        ),
    )
)
