"""The image tower of CLIP (Radford et al. 2021, arXiv 2103.00020), from its own folder or from that of both towers.

`models.encoders.clip_text` has the other tower.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from llm4rec_jax.models.encoders.clip_text import BLOCK_RULES
from llm4rec_jax.models.encoders.config_json import config_fields
from llm4rec_jax.models.encoders.weights import Rule, linear, norm
from llm4rec_jax.models.vision.base import NOT_IN_FILES, VisionConfig, VisionFamily, register
from llm4rec_jax.models.vision.encoder import VisionEncoder

TOWER_NAMES = {
    **NOT_IN_FILES,
    "attention_probs_dropout_prob": "attention_dropout",
    "hidden_dropout_prob": "",
    "qkv_bias": "",
    "layerscale_value": "",
    "pooler_act": "",
}
"""Names in `config.json` of the fields of an image tower."""
DEFAULTS = {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}


def config_from_hf(raw: Mapping[str, Any]) -> VisionConfig:
    """The configuration from the fields of a `config.json` of the tower or of both towers, with the projection."""
    tower = raw.get("vision_config") or raw
    # In a folder of both towers the tower's own width of the projection has no use.
    return VisionConfig(
        model_type="clip_vision_model",
        head="projection",
        head_size=raw.get("projection_dim", 512),
        patch_bias=False,
        entry_norm=True,
        norm_states=False,
        **{**DEFAULTS, **config_fields(VisionConfig, tower, **TOWER_NAMES)},
    )


CLIP = register(
    VisionFamily(
        model_type="clip_vision_model",
        build=VisionEncoder,
        config_from_hf=config_from_hf,
        weight_rules=(
            Rule("embeddings.class_embedding", ("embeddings/class_token",)),
            Rule("embeddings.patch_embedding.weight", ("embeddings/patch/filters",), transpose=True),
            Rule("embeddings.position_embedding.weight", ("embeddings/positions",)),
            # Its name is misspelt in every checkpoint.
            *norm("pre_layrnorm", "entry_norm"),
            *BLOCK_RULES,
            *norm("post_layernorm", "final_norm"),
            *linear("visual_projection", "head/output", bias=False),
        ),
        prefixes=("vision_model.",),
        dropped=(
            r"(?:vision_model\.)?embeddings\.position_ids",
            r"text_model\..*",
            r"text_projection\.weight",
            r"logit_scale",
        ),
    )
)
# A folder of both towers names the family "clip".
register(dataclasses.replace(CLIP, model_type="clip"))
