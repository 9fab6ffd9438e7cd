"""Self-attention of encoders, in which every token attends to all real ones."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.layers.attention import attend
from llm4rec_jax.models.layers.dropout import dropout
from llm4rec_jax.models.layers.linear import Dense, dense
from llm4rec_jax.models.layers.segments import same_text


class Attention(nn.Module):
    """Multi-head self-attention with its output projection. [B, L, D] -> [B, L, D].

    `bias` [1 or B, heads, L, L] is added to the scores, where a family has positions there.

    Attributes:
      config: An `EncoderConfig` that has `attention_probs_dropout_prob` and `initializer_range` too.
      scale: Factor of q kᵀ; None for one over the root of a head's width.
      use_bias: Whether the projections have biases.
    """

    config: Any
    scale: float | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *bias: jax.Array) -> jax.Array:
        c = self.config
        q, k, v = (
            self.heads(self.project(c.num_attention_heads * c.head_width, name)(x))
            for name in ("query", "key", "value")
        )
        mixed = self.attend(q, k, v, self.keys(mask), *bias)
        return self.project(c.hidden_size, "output")(mixed.reshape(*x.shape[:-1], -1))

    @nn.nowrap
    def project(self, features: int, name: str) -> Dense:
        """A linear layer of this module."""
        return dense(features, name, self.config.dtype, self.config.initializer_range, self.use_bias)

    @nn.nowrap
    def heads(self, states: jax.Array) -> jax.Array:
        """Divides states by head: [B, L, heads · width] to [B, L, heads, width]."""
        return states.reshape(*states.shape[:-1], self.config.num_attention_heads, self.config.head_width)

    @nn.nowrap
    def keys(self, mask: jax.Array) -> jax.Array:
        """The mask of `attend` from one of real tokens or of texts, [B, L]."""
        return mask if self.config.attention == "splash" else same_text(mask)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *bias: jax.Array) -> jax.Array:
        """Scaled dot-product attention.

        Args:
          q: [B, L, heads, width]; k, v: [B, S, heads, width].
          mask: [B, 1 or L, S] bool, which keys may be attended to; for splash attention [B, S], see `layers.segments`.
          bias: At most one, [1 or B, heads, L, S], added to the scores.

        Returns:
          [B, L, heads, width].
        """
        if self.config.attention == "splash":
            from llm4rec_jax.models.layers.splash import splash_attend  # Takes a second to import

            return splash_attend(q, k, v, mask, scale=self.scale)
        allowed = mask[:, None]
        if self.config.attention == "cudnn":
            if q.shape[1] % 2 or k.shape[1] % 2:
                raise ValueError(
                    f"cuDNN's attention wants an even number of tokens, and there are {q.shape[1]} over {k.shape[1]}: "
                    "give xla as the encoder's attention"
                )
            allowed = jnp.broadcast_to(allowed, (len(q), 1, q.shape[1], k.shape[1]))
            return jax.nn.dot_product_attention(q, k, v, *bias, mask=allowed, scale=self.scale, implementation="cudnn")
        rate = self.config.attention_probs_dropout_prob
        added = bias[0] if bias else None
        return attend(q, k, v, allowed, lambda weights: dropout(self, weights, rate), added, self.scale)
