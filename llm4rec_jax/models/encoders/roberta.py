"""RoBERTa (Liu et al. 2019, arXiv 1907.11692) and XLM-R (Conneau et al. 2020, arXiv 1911.02116): BERT, read anew.

They differ from BERT in where positions begin, behind the id of padding, and count the tokens that are not padding.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.encoders.base import Family, register
from llm4rec_jax.models.encoders.bert import (
    BLOCK_RULES,
    EMBEDDING_RULES,
    TOKEN_TYPE_RULES,
    Bert,
    BertConfig,
    Embeddings,
    config_from_hf,
)
from llm4rec_jax.models.encoders.config_json import fields_to_hf
from llm4rec_jax.models.encoders.post_norm import post_norm_blocks
from llm4rec_jax.models.layers.segments import restart


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """Fields of the `config.json` of a RoBERTa.

    `max_position_embeddings` is the number of tokens of the longest text here, and in `config.json` the rows of the
    table, of which the first `pad_token_id` + 1 stand for no token: 514 there are 512 here.

    Example:
      >>> RobertaConfig().first_position
      2
    """

    model_type: str = "roberta"
    vocab_size: int = 50265
    pad_token_id: int | None = 1

    def __post_init__(self) -> None:
        if self.pad_token_id is None or self.pad_token_id < 0:
            raise ValueError(f"pad_token_id is {self.pad_token_id}, but positions begin behind it: give 0 or more")
        super().__post_init__()

    @property
    def first_position(self) -> int:
        """Row of the position table that the first token takes."""
        return (self.pad_token_id or 0) + 1


class CountedEmbeddings(Embeddings):
    """BERT's embeddings with positions that count the tokens other than padding, by their ids."""

    @nn.nowrap
    def positions(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Rows of the position table, [B, L]. Ids 5 6 1 with padding 1: 2 3 1."""
        before = self.config.first_position - 1
        real = (ids != before).astype(jnp.int32)
        # Tokens before each one, so that a text's first one restarts at 0.
        return (restart(jnp.cumsum(real, axis=-1) - real, mask) + 1) * real + before


class Roberta(Bert):
    """RoBERTa without its pooler and heads."""

    def setup(self) -> None:
        self.embeddings = CountedEmbeddings(self.config)
        self.blocks = post_norm_blocks(self.config)


_Config = TypeVar("_Config", bound=RobertaConfig)


def counted_from_hf(kind: type[_Config], raw: Mapping[str, Any], **renamed: str) -> _Config:
    """The configuration of an encoder whose position table has rows that stand for no token."""
    config = config_from_hf(kind, {"max_position_embeddings": 512, **raw}, **renamed)
    return dataclasses.replace(config, max_position_embeddings=config.max_position_embeddings - config.first_position)


def counted_to_hf(config: RobertaConfig, architecture: str, **renamed: str) -> dict[str, Any]:
    """The inverse of `counted_from_hf`."""
    rows = config.max_position_embeddings + config.first_position
    return {**fields_to_hf(config, architecture, **renamed), "max_position_embeddings": rows}


def _register(model_type: str, architecture: str, vocab_size: int) -> None:
    named = {"model_type": model_type, "vocab_size": vocab_size}
    register(
        Family(
            model_type=model_type,
            build=Roberta,
            config_from_hf=lambda raw: counted_from_hf(RobertaConfig, {**named, **raw}),
            config_to_hf=partial(counted_to_hf, architecture=architecture),
            weight_rules=(*EMBEDDING_RULES, *TOKEN_TYPE_RULES, *BLOCK_RULES),
            prefixes=("roberta.",),
            dropped=(r"embeddings\.position_ids", r"(?:pooler|lm_head|classifier|qa_outputs)\..*"),
            unused_modules=("pooler.dense",),
            target_modules=("query", "value"),
        )
    )


_register("roberta", "RobertaModel", 50265)
_register("xlm-roberta", "XLMRobertaModel", 250002)
