"""The text tower of CLIP (Radford et al. 2021, arXiv 2103.00020), read from its own folder or from that of both towers.

`models.vision.clip` has the other tower.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.encoders.base import Encoder, Family, register
from llm4rec_jax.models.encoders.config_json import config_fields, fields_to_hf
from llm4rec_jax.models.encoders.post_norm import layer_norm
from llm4rec_jax.models.encoders.pre_norm import PreNormConfig, pre_norm_blocks
from llm4rec_jax.models.encoders.weights import Rule, embedding, linear, norm
from llm4rec_jax.models.layers.linear import normal
from llm4rec_jax.models.layers.segments import restart

MODEL_TYPE = "clip_text_model"
NAMES = {
    "model_type": "",
    "attention_probs_dropout_prob": "attention_dropout",
    "hidden_dropout_prob": "",
    "qkv_bias": "",
    "layerscale_value": "",
    "gated": "",
    "causal": "",
}
"""Names in `config.json` of the fields of a tower; "" is for those that it does not have."""


@dataclasses.dataclass(frozen=True)
class ClipTextConfig(PreNormConfig):
    """Fields of the `config.json` of CLIP's text tower."""

    model_type: str = MODEL_TYPE
    vocab_size: int = 49408
    hidden_size: int = 512
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = 1
    causal: bool = True


class Embeddings(nn.Module):
    """Sum of word and position embeddings. [B, L] -> [B, L, D]."""

    config: ClipTextConfig

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        c = self.config

        def table(rows: int, name: str) -> nn.Embed:
            return nn.Embed(rows, c.hidden_size, dtype=c.dtype, embedding_init=normal(c.initializer_range), name=name)

        length = ids.shape[-1]
        if length > c.max_position_embeddings:
            raise ValueError(f"{length} tokens, but the encoder has {c.max_position_embeddings} positions: cut texts")
        positions = restart(jnp.arange(length)[None], mask)
        return table(c.vocab_size, "word")(ids) + table(c.max_position_embeddings, "position")(positions)


class ClipText(Encoder):
    """CLIP's text tower without its projection."""

    config: ClipTextConfig

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config)
        self.blocks = pre_norm_blocks(self.config)
        self.final_norm = layer_norm(self.config, "final_norm")

    @nn.nowrap
    def embed(self, ids: jax.Array, mask: jax.Array, token_type: jax.Array | None) -> jax.Array:
        """Hidden states before the first block, [B, L, D]."""
        return self.embeddings(ids, mask)

    @nn.nowrap
    def finish(self, x: jax.Array) -> jax.Array:
        """Hidden states of the last layer [B, L, D] from those after the last block."""
        return self.final_norm(x)


def config_from_hf(raw: Mapping[str, Any]) -> ClipTextConfig:
    """The configuration from the fields of a `config.json` of the tower or of both towers."""
    return ClipTextConfig(**config_fields(ClipTextConfig, raw.get("text_config") or raw, **NAMES))


def config_to_hf(config: ClipTextConfig) -> dict[str, Any]:
    """The fields of the tower's `config.json` from the configuration."""
    fields = fields_to_hf(config, "CLIPTextModel", **NAMES)
    return {"model_type": MODEL_TYPE, **fields}


BLOCK_RULES: tuple[Rule, ...] = (
    *linear("encoder.layers.{i}.self_attn.q_proj", "layer_{i}/attention/query"),
    *linear("encoder.layers.{i}.self_attn.k_proj", "layer_{i}/attention/key"),
    *linear("encoder.layers.{i}.self_attn.v_proj", "layer_{i}/attention/value"),
    *linear("encoder.layers.{i}.self_attn.out_proj", "layer_{i}/attention/output"),
    *linear("encoder.layers.{i}.mlp.fc1", "layer_{i}/ffn/up"),
    *linear("encoder.layers.{i}.mlp.fc2", "layer_{i}/ffn/down"),
    *norm("encoder.layers.{i}.layer_norm1", "layer_{i}/attention_norm"),
    *norm("encoder.layers.{i}.layer_norm2", "layer_{i}/ffn_norm"),
)
"""Names of a block's tensors in the towers of CLIP and SigLIP."""

CLIP_TEXT = register(
    Family(
        model_type=MODEL_TYPE,
        build=ClipText,
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weight_rules=(
            *embedding("embeddings.token_embedding", "embeddings/word"),
            *embedding("embeddings.position_embedding", "embeddings/position"),
            *BLOCK_RULES,
            *norm("final_layer_norm", "final_norm"),
        ),
        prefixes=("text_model.",),
        dropped=(
            r"(?:text_model\.)?embeddings\.position_ids",
            r"vision_model\..*",
            r"(?:visual|text)_projection\.weight",
            r"logit_scale",
        ),
        target_modules=("q_proj", "v_proj"),
        past_keys=False,
        causal=True,
        pooling="last",
    )
)
# A folder of both towers names the family "clip".
register(dataclasses.replace(CLIP_TEXT, model_type="clip"))
