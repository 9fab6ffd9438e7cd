"""The transformer block with its norms before the sublayers (Xiong et al. 2020, arXiv 2002.04745).

Vision transformers and the text tower of CLIP are stacks of it.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.encoders.attention import Attention
from llm4rec_jax.models.encoders.post_norm import PostNormConfig, layer_norm
from llm4rec_jax.models.layers.activations import ACTIVATIONS
from llm4rec_jax.models.layers.dropout import dropout
from llm4rec_jax.models.layers.linear import Dense, dense


@dataclasses.dataclass(frozen=True)
class PreNormConfig(PostNormConfig):
    """Fields of a stack of pre-norm blocks; names are Hugging Face's.

    Attributes:
      qkv_bias: Whether the projections of queries, keys and values have biases. The output projection always has one.
      layerscale_value: Initial factor of every dimension of a sublayer's output (Touvron et al. 2021, arXiv
        2103.17239); None has no such factors.
      gated: Whether the feed-forward network multiplies by a gate.
      causal: Whether a token attends only to itself and those before it.
    """

    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    qkv_bias: bool = True
    layerscale_value: float | None = None
    gated: bool = False
    causal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention == "splash" and self.causal:
            raise ValueError(f"splash attention of {self.model_type} would read later tokens: give xla")


class PreNormAttention(Attention):
    """Self-attention of a pre-norm block. [B, L, D] -> [B, L, D]."""

    config: PreNormConfig

    @nn.nowrap
    def project(self, features: int, name: str) -> Dense:
        """A linear layer of this module."""
        c = self.config
        return dense(features, name, c.dtype, c.initializer_range, c.qkv_bias or name == "output")

    @nn.nowrap
    def keys(self, mask: jax.Array) -> jax.Array:
        """The mask of `attend` from one of real tokens or of texts, [B, L]."""
        allowed = super().keys(mask)
        if not self.config.causal:
            return allowed
        length = mask.shape[-1]
        return allowed & jnp.tril(jnp.ones((length, length), bool))


class FeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) · up(x)). [B, L, D] -> [B, L, D]."""

    config: PreNormConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, act = self.config, ACTIVATIONS[self.config.hidden_act]
        hidden = dense(c.intermediate_size, "up", c.dtype, c.initializer_range)(x)
        if c.gated:
            hidden = act(dense(c.intermediate_size, "gate", c.dtype, c.initializer_range)(x)) * hidden
        else:
            hidden = act(hidden)
        return dense(c.hidden_size, "down", c.dtype, c.initializer_range)(hidden)


class Layer(nn.Module):
    """A pre-norm transformer block. [B, L, D] -> [B, L, D]."""

    config: PreNormConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        c = self.config

        def added(sublayer: jax.Array, name: str) -> jax.Array:
            if c.layerscale_value is not None:
                start = nn.initializers.constant(c.layerscale_value)
                factors = jnp.asarray(self.param(f"{name}_scale", start, (c.hidden_size,)))
                sublayer = sublayer * factors.astype(c.dtype)
            return x + dropout(self, sublayer, c.hidden_dropout_prob)

        x = added(PreNormAttention(c, name="attention")(layer_norm(c, "attention_norm")(x), mask), "attention")
        return added(FeedForward(c, name="ffn")(layer_norm(c, "ffn_norm")(x)), "ffn")


def pre_norm_blocks(config: PreNormConfig) -> list[Any]:
    """The blocks `layer_0`, `layer_1`, … of a stack, for an encoder's `setup`."""
    kind = nn.remat(Layer) if config.remat else Layer
    return [kind(config, name=f"layer_{i}") for i in range(config.num_hidden_layers)]
