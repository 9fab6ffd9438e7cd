"""The transformer block with its norms after the sublayers, of Vaswani et al. 2017 and of most encoders since."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.encoders.base import EncoderConfig
from llm4rec_jax.models.layers.activations import ACTIVATIONS
from llm4rec_jax.models.layers.attention import attend
from llm4rec_jax.models.layers.dropout import dropout
from llm4rec_jax.models.layers.linear import dense


@dataclasses.dataclass(frozen=True)
class PostNormConfig(EncoderConfig):
    """Fields of a stack of post-norm blocks; names are Hugging Face's."""

    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    dropout_rates = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    attention_dropout_rate = "attention_probs_dropout_prob"

    def __post_init__(self) -> None:
        if self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        super().__post_init__()


def layer_norm(config: PostNormConfig, name: str) -> nn.LayerNorm:
    """The norm of an encoder of this kind."""
    # Statistics are taken in float32 whatever the compute dtype (flax does so); the two-pass variance is torch's.
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=config.dtype, use_fast_variance=False, name=name)


def _dense(config: PostNormConfig, features: int, name: str) -> nn.Dense:
    return dense(features, name, config.dtype, config.initializer_range)


class Attention(nn.Module):
    """Multi-head self-attention with its output projection. [B, L, D] -> [B, L, D].

    `bias` [1 or B, heads, L, L] is added to the scores, where a family has positions there.
    """

    config: PostNormConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *bias: jax.Array) -> jax.Array:
        c = self.config
        heads = (*x.shape[:-1], c.num_attention_heads, c.head_width)
        q, k, v = (_dense(c, c.hidden_size, name)(x).reshape(heads) for name in ("query", "key", "value"))
        return _dense(c, c.hidden_size, "output")(self.attend(q, k, v, mask, *bias).reshape(x.shape))

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *bias: jax.Array) -> jax.Array:
        """Scaled dot-product attention.

        Args:
          q: [B, L, heads, D / heads]; k, v: [B, S, heads, D / heads].
          mask: [B, S] bool, which keys may be attended to.
          bias: At most one, [1 or B, heads, L, S], added to the scores.

        Returns:
          [B, L, heads, D / heads].
        """
        allowed = mask[:, None, None]
        if self.config.attention == "cudnn":
            if q.shape[1] % 2 or k.shape[1] % 2:
                raise ValueError(
                    f"cuDNN's attention wants an even number of tokens, and there are {q.shape[1]} over {k.shape[1]}: "
                    "give xla as the encoder's attention"
                )
            allowed = jnp.broadcast_to(allowed, (len(q), 1, q.shape[1], k.shape[1]))
            return jax.nn.dot_product_attention(q, k, v, *bias, mask=allowed, implementation="cudnn")
        rate = self.config.attention_probs_dropout_prob
        added = bias[0] if bias else None
        return attend(q, k, v, allowed, lambda weights: dropout(self, weights, rate), bias=added)


class FeedForward(nn.Module):
    """down(act(up(x))). [B, L, D] -> [B, L, D]."""

    config: PostNormConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        hidden = ACTIVATIONS[c.hidden_act](_dense(c, c.intermediate_size, "up")(x))
        return _dense(c, c.hidden_size, "down")(hidden)


class Layer(nn.Module):
    """A post-norm transformer block. [B, L, D] -> [B, L, D]."""

    config: PostNormConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *bias: jax.Array) -> jax.Array:
        c = self.config
        attended = Attention(c, name="attention")(x, mask, *bias)
        x = layer_norm(c, "attention_norm")(x + dropout(self, attended, c.hidden_dropout_prob))
        transformed = FeedForward(c, name="ffn")(x)
        return layer_norm(c, "ffn_norm")(x + dropout(self, transformed, c.hidden_dropout_prob))


def post_norm_blocks(config: PostNormConfig) -> list[Any]:
    """The blocks `layer_0`, `layer_1`, … of a stack, for an encoder's `setup`."""
    layer = nn.remat(Layer) if config.remat else Layer
    return [layer(config, name=f"layer_{i}") for i in range(config.num_hidden_layers)]
