"""BERT (Devlin et al. 2019, arXiv 1810.04805) in Flax Linen. Its parts have the names of `encoders.base`."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.encoders.base import OURS, Encoder, Family, config_fields, register
from llm4rec_jax.models.encoders.post_norm import PostNormConfig, layer_norm, post_norm_blocks
from llm4rec_jax.models.encoders.weights import embedding, linear, norm
from llm4rec_jax.models.layers.dropout import dropout
from llm4rec_jax.models.layers.linear import normal


@dataclasses.dataclass(frozen=True)
class BertConfig(PostNormConfig):
    """Fields of the `config.json` of a BERT.

    Example:
      >>> BertConfig(hidden_size=384, num_attention_heads=12).head_width
      32
    """

    model_type: str = "bert"
    type_vocab_size: int = 2

    sizes = (*PostNormConfig.sizes, "type_vocab_size")


class Embeddings(nn.Module):
    """Sum of word, position and token type embeddings, normed. [B, L] -> [B, L, D]."""

    config: BertConfig

    @nn.compact
    def __call__(self, ids: jax.Array, token_type: jax.Array | None = None) -> jax.Array:
        c = self.config
        if ids.shape[-1] > c.max_position_embeddings:
            raise ValueError(
                f"{ids.shape[-1]} tokens, but the encoder has {c.max_position_embeddings} positions: "
                "truncate the text when tokenising"
            )
        # In float32 whatever the compute dtype: a gradient is the sum over all tokens of a kind, thousands of them.
        embed = partial(nn.Embed, features=c.hidden_size, embedding_init=normal(c.initializer_range))
        words = embed(c.vocab_size, name="word")(ids)
        positions = embed(c.max_position_embeddings, name="position")(jnp.arange(ids.shape[-1]))
        kinds = jnp.int32(0) if token_type is None else token_type
        types = embed(c.type_vocab_size, name="token_type")(kinds)
        return dropout(self, layer_norm(c, "norm")(words + types + positions), c.hidden_dropout_prob)


class Bert(Encoder):
    """BERT without its pooler and heads."""

    config: BertConfig

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config)
        self.blocks = post_norm_blocks(self.config)

    @nn.nowrap
    def embed(self, ids: jax.Array, mask: jax.Array, token_type: jax.Array | None) -> jax.Array:
        """Hidden states before the first block, [B, L, D]."""
        return self.embeddings(ids, token_type)


def _config_from_hf(raw: Mapping[str, Any]) -> BertConfig:
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"position_embedding_type {raw['position_embedding_type']!r} is not supported")
    for unsupported in ("is_decoder", "add_cross_attention"):
        if raw.get(unsupported):
            raise ValueError(f"{unsupported} is set; only encoders can be read")
    return BertConfig(**config_fields(BertConfig, raw))


def _config_to_hf(config: BertConfig) -> dict[str, Any]:
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in OURS}
    return {"architectures": ["BertModel"], "position_embedding_type": "absolute", **fields}


_BLOCK = "encoder.layer.{i}"

BERT = register(
    Family(
        model_type="bert",
        build=Bert,
        config_from_hf=_config_from_hf,
        config_to_hf=_config_to_hf,
        weight_rules=(
            *embedding("embeddings.word_embeddings", "embeddings/word"),
            *embedding("embeddings.position_embeddings", "embeddings/position"),
            *embedding("embeddings.token_type_embeddings", "embeddings/token_type"),
            *norm("embeddings.LayerNorm", "embeddings/norm"),
            *linear(f"{_BLOCK}.attention.self.query", "layer_{i}/attention/query"),
            *linear(f"{_BLOCK}.attention.self.key", "layer_{i}/attention/key"),
            *linear(f"{_BLOCK}.attention.self.value", "layer_{i}/attention/value"),
            *linear(f"{_BLOCK}.attention.output.dense", "layer_{i}/attention/output"),
            *norm(f"{_BLOCK}.attention.output.LayerNorm", "layer_{i}/attention_norm"),
            *linear(f"{_BLOCK}.intermediate.dense", "layer_{i}/ffn/up"),
            *linear(f"{_BLOCK}.output.dense", "layer_{i}/ffn/down"),
            *norm(f"{_BLOCK}.output.LayerNorm", "layer_{i}/ffn_norm"),
        ),
        prefixes=("bert.",),
        dropped=(r"embeddings\.position_ids", r"(?:pooler|cls|classifier|qa_outputs)\..*"),
        unused_modules=("pooler.dense",),
        target_modules=("query", "value"),
    )
)
