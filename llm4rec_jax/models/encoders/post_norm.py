"""The transformer block with its norms after the sublayers, of Vaswani et al. 2017 and of most encoders since."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from llm4rec_jax.models.encoders.attention import Attention
from llm4rec_jax.models.encoders.base import EncoderConfig
from llm4rec_jax.models.layers.activations import ACTIVATIONS
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

    @property
    def attention_scale(self) -> float | None:
        """Factor of attention scores; None for one over the root of a head's width."""
        return None


def layer_norm(config: PostNormConfig, name: str) -> nn.LayerNorm:
    """The norm of an encoder of this kind."""
    # Statistics are taken in float32 whatever the compute dtype (flax does so); the two-pass variance is torch's.
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=config.dtype, use_fast_variance=False, name=name)


class FeedForward(nn.Module):
    """down(act(up(x))). [B, L, D] -> [B, L, D]."""

    config: PostNormConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        hidden = ACTIVATIONS[c.hidden_act](dense(c.intermediate_size, "up", c.dtype, c.initializer_range)(x))
        return dense(c.hidden_size, "down", c.dtype, c.initializer_range)(hidden)


class Layer(nn.Module):
    """A post-norm transformer block. [B, L, D] -> [B, L, D]."""

    config: PostNormConfig
    attention_class = Attention

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *positions: jax.Array) -> jax.Array:
        c, entered = self.config, x
        attended = self.attention_class(c, c.attention_scale, name="attention")(x, mask, *positions)
        x = layer_norm(c, "attention_norm")(x + dropout(self, attended, c.hidden_dropout_prob))
        transformed = FeedForward(c, name="ffn")(x)
        x = layer_norm(c, "ffn_norm")(x + dropout(self, transformed, c.hidden_dropout_prob))
        return self.finish(entered, x, mask)

    @nn.nowrap
    def finish(self, entered: jax.Array, x: jax.Array, mask: jax.Array) -> jax.Array:
        """States after the block, from those before it and those after its sublayers."""
        return x


def post_norm_blocks(config: PostNormConfig, kinds: Sequence[type[Layer]] | None = None) -> list[Any]:
    """The blocks `layer_0`, `layer_1`, … of a stack, for an encoder's `setup`.

    Args:
      config: Configuration of the stack.
      kinds: Class of each block; None for `Layer`.
    """
    kinds = [Layer] * config.num_hidden_layers if kinds is None else kinds
    return [(nn.remat(kind) if config.remat else kind)(config, name=f"layer_{i}") for i, kind in enumerate(kinds)]
