"""Random vision encoders of transformers, saved as folders."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

TOWER: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20, "image_size": 13,
    "patch_size": 4,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20, "vocab_size": 40,
    "max_position_embeddings": 13, "bos_token_id": 1, "eos_token_id": 39, "pad_token_id": 39, "layer_norm_eps": 0.01,
}  # fmt: skip
_DINO = {name: value for name, value in TOWER.items() if name != "intermediate_size"}
BOTH: dict[str, Any] = {"text_config": TEXT, "vision_config": TOWER}

MODELS = {
    "vit": lambda: ViTModel(ViTConfig(**TOWER, qkv_bias=False, hidden_act="relu", layer_norm_eps=0.02)),
    "vit without a pooler": lambda: ViTForImageClassification(ViTConfig(**TOWER, pooler_output_size=24)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**_DINO, mlp_ratio=2, layerscale_value=0.5)),
    "dinov2_swiglu": lambda: Dinov2Model(Dinov2Config(**_DINO, use_swiglu_ffn=True)),
    "clip": lambda: CLIPModel(CLIPConfig(**BOTH, projection_dim=11)),
    "clip_vision_model": lambda: CLIPVisionModel(CLIPVisionConfig(**TOWER, hidden_act="gelu")),
    "siglip": lambda: SiglipModel(SiglipConfig(**BOTH)),
    "siglip_vision_model": lambda: SiglipVisionModel(SiglipVisionConfig(**TOWER)),
}
PIXELS = np.random.default_rng(0).normal(size=(3, 13, 13, 3)).astype(np.float32)


def made(name: str, folder: Path) -> torch.nn.Module:
    """A random model, whose folder is written."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms are drawn about what they start from, so that a weight that is left out shows.
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.15))
    model.save_pretrained(folder)
    return model


def outputs(name: str, model: Any, pixels: np.ndarray, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """States and pooled vectors of transformers."""
    images = torch.tensor(pixels.transpose(0, 3, 1, 2))
    if name == "vit without a pooler":
        states = model.vit(images, **options).last_hidden_state
        return states, states[:, 0]
    tower = getattr(model, "vision_model", model)
    found = tower(images, **options)
    pooled = found.pooler_output
    return found.last_hidden_state, model.visual_projection(pooled) if name == "clip" else pooled
