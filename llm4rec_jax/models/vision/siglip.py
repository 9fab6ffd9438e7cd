"""The image tower of SigLIP (Zhai et al. 2023, arXiv 2303.15343), from its own folder or from that of both towers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from llm4rec_jax.models.encoders.clip_text import BLOCK_RULES
from llm4rec_jax.models.encoders.config_json import config_fields
from llm4rec_jax.models.encoders.weights import Rule, linear, norm
from llm4rec_jax.models.vision.base import VisionConfig, VisionFamily, register
from llm4rec_jax.models.vision.clip import TOWER_NAMES
from llm4rec_jax.models.vision.encoder import VisionEncoder

DEFAULTS = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}


def config_from_hf(raw: Mapping[str, Any]) -> VisionConfig:
    """The configuration from the fields of a `config.json` of the tower or of both towers."""
    tower = raw.get("vision_config") or raw
    return VisionConfig(
        model_type="siglip_vision_model",
        class_token=False,
        head="attention" if tower.get("vision_use_head", True) else None,
        **{**DEFAULTS, **config_fields(VisionConfig, tower, **TOWER_NAMES)},
    )


SIGLIP = register(
    VisionFamily(
        model_type="siglip_vision_model",
        build=VisionEncoder,
        config_from_hf=config_from_hf,
        weight_rules=(
            Rule("embeddings.patch_embedding.weight", ("embeddings/patch/filters",), transpose=True),
            Rule("embeddings.patch_embedding.bias", ("embeddings/patch/bias",)),
            Rule("embeddings.position_embedding.weight", ("embeddings/positions",)),
            *BLOCK_RULES,
            *norm("post_layernorm", "final_norm"),
            Rule("head.probe", ("head/attention/probe",), leading=2),
            Rule(
                "head.attention.in_proj_weight",
                tuple(f"head/attention/{name}/kernel" for name in ("query", "key", "value")),
                transpose=True,
            ),
            Rule(
                "head.attention.in_proj_bias",
                tuple(f"head/attention/{name}/bias" for name in ("query", "key", "value")),
            ),
            *linear("head.attention.out_proj", "head/attention/output"),
            *norm("head.layernorm", "head/norm"),
            *linear("head.mlp.fc1", "head/ffn/up"),
            *linear("head.mlp.fc2", "head/ffn/down"),
        ),
        prefixes=("vision_model.",),
        dropped=(
            r"(?:vision_model\.)?embeddings\.position_ids",
            r"text_model\..*",
            r"logit_(?:scale|bias)",
            r"classifier\..*",
        ),
    )
)
# A folder of both towers names the family "siglip".
register(dataclasses.replace(SIGLIP, model_type="siglip"))
