"""BERT (Devlin et al. 2019, arXiv 1810.04805) in Flax Linen. Its parts have the names of `encoders.base`."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.encoders.base import Encoder, Family, register
from llm4rec_jax.models.encoders.config_json import config_fields, fields_to_hf
from llm4rec_jax.models.encoders.post_norm import PostNormConfig, layer_norm, post_norm_blocks
from llm4rec_jax.models.encoders.weights import embedding, linear, norm
from llm4rec_jax.models.layers.dropout import dropout
from llm4rec_jax.models.layers.linear import dense, normal
from llm4rec_jax.models.layers.segments import restart


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

    @property
    def first_position(self) -> int:
        """Row of the position table that the first token takes; a text may have as many tokens as rows follow."""
        return 0

    @property
    def position_table(self) -> bool:
        """Whether there are embeddings of positions."""
        return True

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings before they are projected to D."""
        return self.hidden_size


class Embeddings(nn.Module):
    """Sum of word, position and token type embeddings, normed. [B, L] -> [B, L, D].

    There are no positions or token types where the configuration has none, and a projection where it has another width
    than D.
    """

    config: BertConfig

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array, token_type: jax.Array | None = None) -> jax.Array:
        c = self.config
        # In float32 whatever the compute dtype: a gradient is the sum over all tokens of a kind, thousands of them.
        embed = partial(nn.Embed, features=c.embedding_width, embedding_init=normal(c.initializer_range))
        x = embed(c.vocab_size, name="word")(ids)
        if c.type_vocab_size:
            if token_type is None:
                # Flax's table of a single row knows no scalar ids.
                token_type = jnp.int32(0) if c.type_vocab_size > 1 else jnp.zeros(ids.shape, jnp.int32)
            x = x + embed(c.type_vocab_size, name="token_type")(token_type)
        elif token_type is not None:
            raise ValueError(f"{c.model_type} has no token types: leave token_type out")
        if c.position_table:
            if ids.shape[-1] > c.max_position_embeddings:
                raise ValueError(
                    f"{ids.shape[-1]} tokens, but the encoder has {c.max_position_embeddings} positions: "
                    "truncate the text when tokenising"
                )
            x = x + embed(c.max_position_embeddings + c.first_position, name="position")(self.positions(ids, mask))
        return self.finish(x)

    @nn.nowrap
    def positions(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Rows of the position table, [L] or [B, L]."""
        return restart(jnp.arange(ids.shape[-1]), mask)

    @nn.nowrap
    def finish(self, x: jax.Array) -> jax.Array:
        """Norm, dropout and projection to D of the sum."""
        c = self.config
        x = dropout(self, layer_norm(c, "norm")(x), c.hidden_dropout_prob)
        if c.embedding_width == c.hidden_size:
            return x
        return dense(c.hidden_size, "project", c.dtype, c.initializer_range)(x)


class Bert(Encoder):
    """BERT without its pooler and heads."""

    config: BertConfig

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config)
        self.blocks = post_norm_blocks(self.config)

    @nn.nowrap
    def embed(self, ids: jax.Array, mask: jax.Array, token_type: jax.Array | None) -> jax.Array:
        """Hidden states before the first block, [B, L, D]."""
        return self.embeddings(ids, mask, token_type)


_Config = TypeVar("_Config", bound=BertConfig)


def config_from_hf(kind: type[_Config], raw: Mapping[str, Any], **renamed: str) -> _Config:
    """The configuration of an encoder with BERT's blocks from the fields of its `config.json`.

    Args:
      kind: Class of the configuration.
      raw: Fields of `config.json`.
      **renamed: Names in `config.json`, as in `config_fields`.

    Raises:
      ValueError: a field asks for a decoder, or for positions that are not in the embeddings.
    """
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"position_embedding_type {raw['position_embedding_type']!r} is not supported")
    for unsupported in ("is_decoder", "add_cross_attention"):
        if raw.get(unsupported):
            raise ValueError(f"{unsupported} is set; only encoders can be read")
    return kind(**config_fields(kind, raw, **renamed))


BLOCK_RULES = (
    *linear("encoder.layer.{i}.attention.self.query", "layer_{i}/attention/query"),
    *linear("encoder.layer.{i}.attention.self.key", "layer_{i}/attention/key"),
    *linear("encoder.layer.{i}.attention.self.value", "layer_{i}/attention/value"),
    *linear("encoder.layer.{i}.attention.output.dense", "layer_{i}/attention/output"),
    *norm("encoder.layer.{i}.attention.output.LayerNorm", "layer_{i}/attention_norm"),
    *linear("encoder.layer.{i}.intermediate.dense", "layer_{i}/ffn/up"),
    *linear("encoder.layer.{i}.output.dense", "layer_{i}/ffn/down"),
    *norm("encoder.layer.{i}.output.LayerNorm", "layer_{i}/ffn_norm"),
)
"""Names of a block's tensors."""

EMBEDDING_RULES = (
    *embedding("embeddings.word_embeddings", "embeddings/word"),
    *embedding("embeddings.position_embeddings", "embeddings/position"),
    *norm("embeddings.LayerNorm", "embeddings/norm"),
)
"""Names of what all embeddings have."""

TOKEN_TYPE_RULES = embedding("embeddings.token_type_embeddings", "embeddings/token_type")
"""The name of the table of token types."""

BERT = register(
    Family(
        model_type="bert",
        build=Bert,
        config_from_hf=partial(config_from_hf, BertConfig),
        config_to_hf=partial(fields_to_hf, architecture="BertModel"),
        weight_rules=(*EMBEDDING_RULES, *TOKEN_TYPE_RULES, *BLOCK_RULES),
        prefixes=("bert.",),
        dropped=(r"embeddings\.position_ids", r"(?:pooler|cls|classifier|qa_outputs)\..*"),
        unused_modules=("pooler.dense",),
        target_modules=("query", "value"),
    )
)
