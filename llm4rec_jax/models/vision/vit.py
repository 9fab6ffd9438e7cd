"""ViT (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

from collections.abc import Mapping
from typing import Any

from llm4rec_jax.models.encoders.config_json import config_fields
from llm4rec_jax.models.encoders.weights import Rule, linear, norm
from llm4rec_jax.models.vision.base import NOT_IN_FILES, VisionConfig, VisionFamily, register
from llm4rec_jax.models.vision.encoder import VisionEncoder

NAMES = {**NOT_IN_FILES, "layerscale_value": "", "head_size": "pooler_output_size"}


def config_from_hf(raw: Mapping[str, Any]) -> VisionConfig:
    """The configuration from the fields of `config.json`, with the pooler."""
    return VisionConfig(model_type="vit", head="dense", **config_fields(VisionConfig, raw, **NAMES))


EMBEDDING_RULES = (
    Rule("embeddings.patch_embeddings.projection.weight", ("embeddings/patch/filters",), transpose=True),
    Rule("embeddings.patch_embeddings.projection.bias", ("embeddings/patch/bias",)),
    Rule("embeddings.cls_token", ("embeddings/class_token",), leading=2),
    Rule("embeddings.position_embeddings", ("embeddings/positions",), leading=1),
    *norm("layernorm", "final_norm"),
)
"""Names of the tensors beside the blocks in ViT and DINOv2."""

ATTENTION_RULES = (
    *linear("encoder.layer.{i}.attention.attention.query", "layer_{i}/attention/query"),
    *linear("encoder.layer.{i}.attention.attention.key", "layer_{i}/attention/key"),
    *linear("encoder.layer.{i}.attention.attention.value", "layer_{i}/attention/value"),
    *linear("encoder.layer.{i}.attention.output.dense", "layer_{i}/attention/output"),
)
"""Names of the tensors of attention in ViT and DINOv2."""

VIT = register(
    VisionFamily(
        model_type="vit",
        build=VisionEncoder,
        config_from_hf=config_from_hf,
        weight_rules=(
            *EMBEDDING_RULES,
            *ATTENTION_RULES,
            *linear("encoder.layer.{i}.intermediate.dense", "layer_{i}/ffn/up"),
            *linear("encoder.layer.{i}.output.dense", "layer_{i}/ffn/down"),
            *norm("encoder.layer.{i}.layernorm_before", "layer_{i}/attention_norm"),
            *norm("encoder.layer.{i}.layernorm_after", "layer_{i}/ffn_norm"),
            *linear("pooler.dense", "head/output"),
        ),
        prefixes=("vit.",),
        dropped=(r"embeddings\.mask_token", r"(?:classifier|decoder)\..*"),
    )
)
