"""MPNet (Song et al. 2020, arXiv 2004.09297): RoBERTa without token types, and with T5's buckets of distances.

position_bias      number of a bucket -> what it adds to the scores of each head, the same in all blocks
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from llm4rec_jax.models.encoders.base import Family, register
from llm4rec_jax.models.encoders.bert import EMBEDDING_RULES
from llm4rec_jax.models.encoders.post_norm import PostNormConfig
from llm4rec_jax.models.encoders.roberta import Roberta, RobertaConfig, counted_from_hf, counted_to_hf
from llm4rec_jax.models.encoders.weights import embedding, linear, norm
from llm4rec_jax.models.layers.linear import normal
from llm4rec_jax.models.layers.relative import BUCKETS, bias_by_distance


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
    def biased_scores(self) -> bool:
        """Whether attention scores have a part that depends on distances."""
        return True

    @property
    def first_position(self) -> int:
        """Row of the position table that the first token takes; whatever `pad_token_id` is, transformers has 2."""
        return 2


class Mpnet(Roberta):
    """MPNet without its pooler and heads."""

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.position_bias = nn.Embed(BUCKETS, c.num_attention_heads, embedding_init=normal(c.initializer_range))

    @nn.nowrap
    def block_inputs(self, x: jax.Array, mask: jax.Array) -> tuple[Any, ...]:
        """The bias on the scores of every block, [1, heads, L, L]."""
        return (bias_by_distance(self.position_bias, x.shape[1]),)


_LEFT_OUT = {"type_vocab_size": ""}
_BLOCK = "encoder.layer.{i}"

register(
    Family(
        model_type="mpnet",
        build=Mpnet,
        config_from_hf=partial(counted_from_hf, MpnetConfig, **_LEFT_OUT),
        config_to_hf=partial(counted_to_hf, architecture="MPNetModel", **_LEFT_OUT),
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
        tables=("position_bias",),
        unused_modules=("pooler.dense",),
        target_modules=("q", "v"),
        past_keys=False,
    )
)
