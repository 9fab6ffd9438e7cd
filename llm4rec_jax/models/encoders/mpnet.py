"""MPNet (Song et al. 2020, arXiv 2004.09297): RoBERTa without token types, and with T5's buckets of distances.

position_bias      number of a bucket -> what it adds to the scores of each head, the same in all blocks
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.models.encoders.base import Family, register
from llm4rec_jax.models.encoders.bert import EMBEDDING_RULES
from llm4rec_jax.models.encoders.post_norm import PostNormConfig
from llm4rec_jax.models.encoders.roberta import Roberta, RobertaConfig, counted_from_hf, counted_to_hf
from llm4rec_jax.models.encoders.weights import embedding, linear, norm
from llm4rec_jax.models.layers.linear import normal

BUCKETS = 32
"""Number of the buckets of distances."""


@dataclasses.dataclass(frozen=True)
class MpnetConfig(RobertaConfig):
    """Fields of the `config.json` of an MPNet; positions as in `RobertaConfig`.

    Example:
      >>> MpnetConfig().relative_attention_num_buckets
      32
    """

    model_type: str = "mpnet"
    vocab_size: int = 30527
    type_vocab_size: int = 0
    relative_attention_num_buckets: int = BUCKETS

    sizes = PostNormConfig.sizes

    def __post_init__(self) -> None:
        # transformers makes the table as long as it is told, but reads 32 buckets.
        if (given := self.relative_attention_num_buckets) != BUCKETS:
            raise ValueError(f"relative_attention_num_buckets is {given}, but only {BUCKETS} is supported")
        super().__post_init__()

    @property
    def first_position(self) -> int:
        """Row of the position table that the first token takes; whatever `pad_token_id` is, transformers has 2."""
        return 2


def buckets(length: int, count: int = BUCKETS, longest: int = 128) -> np.ndarray:
    """Numbers of the buckets that distances fall into (Raffel et al. 2020, arXiv 1910.10683, section 2.1).

    Half of them are for keys before the query, half for those after; near distances have one each, far ones share.

    Args:
      length: Number of tokens L.
      count: Number of buckets.
      longest: Distances from this one on share a bucket.

    Returns:
      [L, L] int, by query and key.

    Example:
      >>> buckets(3).tolist()
      [[0, 17, 18], [1, 0, 17], [2, 1, 0]]
    """
    distance = np.arange(length) - np.arange(length)[:, None]
    half, exact = count // 2, count // 4
    near = np.abs(distance)
    ratio = np.log(np.maximum(near, 1).astype(np.float32) / np.float32(exact)) / np.float32(np.log(longest / exact))
    far = np.minimum(exact + (ratio * np.float32(half - exact)).astype(int), half - 1)
    return (distance > 0) * half + np.where(near < exact, near, far)


class Mpnet(Roberta):
    """MPNet without its pooler and heads."""

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.position_bias = nn.Embed(BUCKETS, c.num_attention_heads, embedding_init=normal(c.initializer_range))

    @nn.nowrap
    def block_inputs(self, x: jax.Array, mask: jax.Array) -> tuple[Any, ...]:
        """The bias on the scores of every block, [1, heads, L, L]."""
        return (self.position_bias(jnp.asarray(buckets(x.shape[1]))).transpose(2, 0, 1)[None],)


def _from_hf(raw: Mapping[str, Any]) -> MpnetConfig:
    return counted_from_hf(MpnetConfig, {name: value for name, value in raw.items() if name != "type_vocab_size"})


def _to_hf(config: MpnetConfig) -> dict[str, Any]:
    left_out = ("type_vocab_size", "position_embedding_type")
    return {name: value for name, value in counted_to_hf(config, "MPNetModel").items() if name not in left_out}


_BLOCK = "encoder.layer.{i}"

register(
    Family(
        model_type="mpnet",
        build=Mpnet,
        config_from_hf=_from_hf,
        config_to_hf=_to_hf,
        weight_rules=(
            *EMBEDDING_RULES,
            *embedding("encoder.relative_attention_bias", "position_bias"),
            *linear(f"{_BLOCK}.attention.attn.q", "layer_{i}/attention/query"),
            *linear(f"{_BLOCK}.attention.attn.k", "layer_{i}/attention/key"),
            *linear(f"{_BLOCK}.attention.attn.v", "layer_{i}/attention/value"),
            *linear(f"{_BLOCK}.attention.attn.o", "layer_{i}/attention/output"),
            *norm(f"{_BLOCK}.attention.LayerNorm", "layer_{i}/attention_norm"),
            *linear(f"{_BLOCK}.intermediate.dense", "layer_{i}/ffn/up"),
            *linear(f"{_BLOCK}.output.dense", "layer_{i}/ffn/down"),
            *norm(f"{_BLOCK}.output.LayerNorm", "layer_{i}/ffn_norm"),
        ),
        prefixes=("mpnet.",),
        dropped=(r"embeddings\.position_ids", r"(?:pooler|lm_head|classifier|qa_outputs)\..*"),
        unused_modules=("pooler.dense",),
        target_modules=("q", "v"),
    )
)
