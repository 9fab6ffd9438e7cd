"""DeBERTa of version 2 (He et al. 2020, arXiv 2006.03654) and 3 (arXiv 2111.09543): attention by content and distance.

relative                                    number of a distance -> its embedding, the same in all blocks
relative_norm                               norm of these
layer_3/attention/position_{query,key}      projections of these; without them, query and key project them too
layer_0/{conv,conv_norm}                    a convolution beside the first block
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.models.encoders import post_norm
from llm4rec_jax.models.encoders.attention import Attention
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
from llm4rec_jax.models.encoders.config_json import fields_to_hf, refuse
from llm4rec_jax.models.encoders.weights import Rule, embedding, linear, norm
from llm4rec_jax.models.layers.activations import ACTIVATIONS
from llm4rec_jax.models.layers.dropout import dropout
from llm4rec_jax.models.layers.linear import dense, normal
from llm4rec_jax.models.layers.relative import log_distances, to_keys


@dataclasses.dataclass(frozen=True)
class DebertaV2Config(BertConfig):
    """Fields of the `config.json` of a DeBERTa.

    Attributes:
      pos_att_type: Products in the scores: "c2p" of a query and the distance to a key, "p2c" of a key and the distance
        from a query.
      share_att_key: Projections of query and key are those of distances too.
      position_buckets: Number of the distances that are told apart in either direction, far ones by their logarithm;
        0 or less for all up to `max_relative_positions`, or to `max_position_embeddings` where that is below 1.
      norm_rel_ebd: "layer_norm" where the embeddings of distances are normed, otherwise "none".
      position_biased_input: There is a table of positions besides.
      conv_kernel_size: Number of tokens that the convolution sees; 0 for none.

    Example:
      >>> DebertaV2Config(position_buckets=256).span
      256
    """

    model_type: str = "deberta-v2"
    vocab_size: int = 128100
    hidden_size: int = 1536
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    embedding_size: int = 1536
    pos_att_type: tuple[str, ...] = ("c2p", "p2c")
    share_att_key: bool = False
    position_buckets: int = -1
    max_relative_positions: int = -1
    norm_rel_ebd: str = "none"
    position_biased_input: bool = True
    conv_kernel_size: int = 0
    conv_groups: int = 1
    conv_act: str = "tanh"

    sizes = (*post_norm.PostNormConfig.sizes, "embedding_size", "conv_groups")

    def __post_init__(self) -> None:
        if unknown := set(self.pos_att_type) - {"c2p", "p2c"}:
            raise ValueError(f"pos_att_type has {min(unknown)!r}; only c2p and p2c are supported")
        if not self.pos_att_type:
            raise ValueError("pos_att_type is empty, must name c2p, p2c or both")
        if self.norm_rel_ebd not in ("none", "layer_norm"):
            raise ValueError(f"norm_rel_ebd is {self.norm_rel_ebd!r}, must be none or layer_norm")
        if (buckets := self.position_buckets) > 0 and not 1 <= buckets // 2 < self.farthest - 1:
            raise ValueError(f"position_buckets is {buckets}, must be from 2 to twice the {self.farthest} distances")
        if self.conv_kernel_size and self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size is {self.conv_kernel_size}, must be odd")
        if self.conv_groups > 0 and self.hidden_size % self.conv_groups:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of conv_groups {self.conv_groups}")
        if self.conv_kernel_size and self.packing:
            raise ValueError("packing: the convolution reads over the ends of texts in a row: give packing=False")
        if self.conv_act not in ACTIVATIONS:
            raise ValueError(f"conv_act {self.conv_act!r} is not one of {', '.join(ACTIVATIONS)}")
        super().__post_init__()

    @property
    def farthest(self) -> int:
        """Distances from this one on count as one."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings

    @property
    def span(self) -> int:
        """Number of the distances that are told apart in either direction."""
        return self.position_buckets if self.position_buckets > 0 else self.farthest

    @property
    def biased_scores(self) -> bool:
        """Whether attention scores have a part that depends on distances."""
        return True

    @property
    def position_table(self) -> bool:
        """Whether there are embeddings of positions."""
        return self.position_biased_input

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings before they are projected to D."""
        return self.embedding_size

    @property
    def attention_scale(self) -> float:
        """Factor of attention scores, which are sums of up to three products."""
        return (self.head_width * (1 + len(self.pos_att_type))) ** -0.5


class ProjectedEmbeddings(Embeddings):
    """BERT's embeddings, projected before the norm."""

    @nn.nowrap
    def finish(self, x: jax.Array) -> jax.Array:
        """Projection to D, norm and dropout of the sum."""
        c = self.config
        if c.embedding_width != c.hidden_size:
            x = dense(c.hidden_size, "project", c.dtype, c.initializer_range, bias=False)(x)
        return dropout(self, post_norm.layer_norm(c, "norm")(x), c.hidden_dropout_prob)


class DisentangledAttention(Attention):
    """Self-attention whose scores are q_i · k_j, and with distances δ(i, j) also q_i · k'_δ and k_j · q'_δ."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *relative: jax.Array) -> jax.Array:
        """Runs attention over states x [B, L, D]; `relative` holds embeddings of distances, [1, 2 L - 1, D]."""
        c = self.config
        query, key, value = (self.project(c.hidden_size, name) for name in ("query", "key", "value"))
        q, k, v = (self.heads(project(x)) for project in (query, key, value))
        distances = dropout(self, relative[0], c.hidden_dropout_prob)
        scores = []
        if "c2p" in c.pos_att_type:
            to_key = key if c.share_att_key else self.project(c.hidden_size, "position_key")
            scores.append(to_keys(jnp.einsum("bihd,rhd->bhir", q, self.heads(to_key(distances))[0])))
        if "p2c" in c.pos_att_type:
            to_query = query if c.share_att_key else self.project(c.hidden_size, "position_query")
            # Seen from the key, distances run the other way.
            turned = self.heads(to_query(distances))[0, ::-1]
            scores.append(to_keys(jnp.einsum("bjhd,rhd->bhjr", k, turned)).swapaxes(-1, -2))
        mixed = self.attend(q, k, v, self.keys(mask), sum(scores[1:], scores[0]) * c.attention_scale)
        return self.project(c.hidden_size, "output")(mixed.reshape(x.shape))


class Layer(post_norm.Layer):
    """A post-norm transformer block with disentangled attention. [B, L, D] -> [B, L, D]."""

    attention_class = DisentangledAttention


class Convolution(nn.Module):
    """act(x * W + b) over neighbouring real tokens. [B, L, D] -> [B, L, D]."""

    config: DebertaV2Config

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        c = self.config
        shape = (c.conv_kernel_size, c.hidden_size // c.conv_groups, c.hidden_size)
        # Not a kernel, which is a matrix to methods.
        weights = self.param("filter", normal(c.initializer_range), shape).astype(c.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (c.hidden_size,)).astype(c.dtype)
        real = x * mask[..., None].astype(x.dtype)
        x = jax.lax.conv_general_dilated(
            real, weights, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=c.conv_groups
        )
        return ACTIVATIONS[c.conv_act](dropout(self, x + bias, c.hidden_dropout_prob))


class ConvolvedLayer(Layer):
    """A block with a convolution of its input beside it."""

    config: DebertaV2Config  # pyright: ignore[reportIncompatibleVariableOverride]

    @nn.nowrap
    def finish(self, entered: jax.Array, x: jax.Array, mask: jax.Array) -> jax.Array:
        """States after the block, from those before it and those after its sublayers."""
        return post_norm.layer_norm(self.config, "conv_norm")(x + Convolution(self.config, name="conv")(entered, mask))


class DebertaV2(Bert):
    """DeBERTa without its heads."""

    config: DebertaV2Config  # pyright: ignore[reportIncompatibleVariableOverride]

    def setup(self) -> None:
        c = self.config
        kinds: list[type[Layer]] = [Layer] * c.num_hidden_layers
        if c.conv_kernel_size:
            kinds[0] = ConvolvedLayer
        self.embeddings = ProjectedEmbeddings(c)
        self.blocks = post_norm.post_norm_blocks(c, kinds)
        self.relative = nn.Embed(2 * c.span, c.hidden_size, embedding_init=normal(c.initializer_range))
        if c.norm_rel_ebd == "layer_norm":
            self.relative_norm = post_norm.layer_norm(c, "relative_norm")

    @nn.nowrap
    def block_inputs(self, x: jax.Array, mask: jax.Array) -> tuple[Any, ...]:
        """Embeddings of the distances from L - 1 down to 1 - L, [1, 2 L - 1, D]."""
        c, length = self.config, x.shape[1]
        distances = np.arange(length - 1, -length, -1)
        if c.position_buckets > 0:
            distances = log_distances(distances, c.position_buckets, c.farthest)
        states = self.relative(jnp.asarray(np.clip(distances + c.span, 0, 2 * c.span - 1))[None])
        return ((self.relative_norm(states) if c.norm_rel_ebd == "layer_norm" else states).astype(c.dtype),)


def _from_hf(raw: Mapping[str, Any]) -> DebertaV2Config:
    if not raw.get("relative_attention"):
        raise ValueError("relative_attention is false, but only true is supported")
    types = raw.get("pos_att_type") or ()
    types = tuple(name.strip() for name in types.lower().split("|")) if isinstance(types, str) else tuple(types)
    width = {"embedding_size": raw["hidden_size"]} if "hidden_size" in raw else {}
    config = config_from_hf(DebertaV2Config, {**width, **raw, "pos_att_type": types})
    refuse(raw, attention_head_size=config.head_width)
    return config


def _to_hf(config: DebertaV2Config) -> dict[str, Any]:
    return {**fields_to_hf(config, "DebertaV2Model"), "relative_attention": True}


_SELF = "encoder.layer.{i}.attention.self"
_RENAMED = {f"{_SELF}.{name}": f"{_SELF}.{name}_proj" for name in ("query", "key", "value")}


def _renamed(rule: Rule) -> Rule:
    module, _, leaf = rule.tensor.rpartition(".")
    return dataclasses.replace(rule, tensor=f"{_RENAMED.get(module, module)}.{leaf}")


register(
    Family(
        model_type="deberta-v2",
        build=DebertaV2,
        config_from_hf=_from_hf,
        config_to_hf=_to_hf,
        weight_rules=(
            # transformers ignores a table of positions that it does not read.
            *(dataclasses.replace(rule, optional="position" in rule.tensor) for rule in EMBEDDING_RULES),
            *TOKEN_TYPE_RULES,
            *linear("embeddings.embed_proj", "embeddings/project", bias=False),
            *embedding("encoder.rel_embeddings", "relative"),
            *norm("encoder.LayerNorm", "relative_norm"),
            *map(_renamed, BLOCK_RULES),
            *linear(f"{_SELF}.pos_key_proj", "layer_{i}/attention/position_key"),
            *linear(f"{_SELF}.pos_query_proj", "layer_{i}/attention/position_query"),
            Rule("encoder.conv.conv.weight", ("layer_0/conv/filter",), transpose=True),
            Rule("encoder.conv.conv.bias", ("layer_0/conv/bias",)),
            *norm("encoder.conv.LayerNorm", "layer_0/conv_norm"),
        ),
        prefixes=("deberta.",),
        dropped=(
            r"embeddings\.position_ids",
            r"(?:pooler|cls|classifier|qa_outputs|lm_predictions|mask_predictions)\..*",
        ),
        tables=("relative",),
        target_modules=("query_proj", "value_proj"),
        past_keys=False,
    )
)
