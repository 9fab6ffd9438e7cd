"""Self-attention over the history."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.layers.attention import attend
from llm4rec_jax.models.layers.linear import dot_general
from llm4rec_jax.models.users.base import USERS, UserEncoder, UserInputs, causal


class TransformerBlocks(UserEncoder):
    """Base of user encoders that are stacks of pre-norm transformer blocks with learned positions.

    Attributes:
      layers: Number of blocks.
      heads: Attention heads a block; they divide D.
      ffn: Width of the feed-forward layer, as a multiple of D.
      dropout: Rate on embeddings and both sublayers, used when a dropout rng is given.
      positions: Length of the longest history.
    """

    layers: int = 2
    heads: int = 2
    ffn: int = 4
    dropout: float = 0.2
    positions: int = 100

    @nn.nowrap
    def blocks(self, x: jax.Array, allowed: jax.Array, positions: int) -> jax.Array:
        """Adds positions, and runs blocks and a last norm; for the compact `__call__` of a subclass.

        Args:
          x: Vectors [B, H, D].
          allowed: Which positions each position may read, bool [B, H, H].
          positions: Rows of the table of positions.

        Returns:
          [B, H, D].

        Raises:
          ValueError: The number of heads does not divide D.
        """
        length, width = x.shape[1:]
        if width % self.heads:
            raise ValueError(f"the width {width} is not a multiple of {self.heads} heads")
        init = nn.initializers.normal(0.02)
        x = x + nn.Embed(positions, width, embedding_init=init, name="position")(jnp.arange(length))
        x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
        for i in range(self.layers):
            x = Block(self.heads, self.ffn, self.dropout, name=f"layer_{i}")(x, allowed)
        return nn.LayerNorm(name="norm")(x)


@USERS.register("transformer")
class Transformer(TransformerBlocks):
    """SASRec (Kang & McAuley 2018, arXiv 1808.09781): a causal transformer, here with pre-norm blocks."""

    @nn.compact
    def __call__(self, inputs: UserInputs) -> jax.Array:
        length = inputs.history.shape[1]
        if length > self.positions:
            raise ValueError(f"a history of {length} items, but the user model has {self.positions} positions")
        return self.blocks(inputs.history, causal(inputs.history_mask), self.positions)


class Block(nn.Module):
    """A pre-norm transformer block.

    Attributes:
      heads, ffn, dropout: See `TransformerBlocks`.
    """

    heads: int
    ffn: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array) -> jax.Array:
        """Vectors [B, H, D] and allowed [B, H, H] to [B, H, D]."""
        off = not self.has_rng("dropout")
        attended = SelfAttention(self.heads, name="attention")(nn.LayerNorm(name="attention_norm")(x), allowed)
        x = x + nn.Dropout(self.dropout, deterministic=off)(attended)
        transformed = FeedForward(self.ffn, name="ffn")(nn.LayerNorm(name="ffn_norm")(x))
        return x + nn.Dropout(self.dropout, deterministic=off)(transformed)


class SelfAttention(nn.Module):
    """Multi-head attention whose parts have the names of a language model's, so that PEFT methods find them."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array) -> jax.Array:
        """Vectors [B, H, D] and allowed [B, H, H] to [B, H, D]."""
        shape = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        q, k, v = (_dense(x.shape[-1], name)(x).reshape(shape) for name in ("query", "key", "value"))
        return _dense(x.shape[-1], "output")(self.attend(q, k, v, allowed).reshape(x.shape))

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array) -> jax.Array:
        """Queries [B, H, heads, D / heads], keys and values [B, S, heads, D / heads], allowed [B, H, S]."""
        return attend(q, k, v, allowed[:, None])


class FeedForward(nn.Module):
    """The feed-forward layer down(GELU(up(x))), whose hidden layer is `multiple` times as wide as x."""

    multiple: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        return _dense(width, "down")(jax.nn.gelu(_dense(self.multiple * width, "up")(x)))


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, dot_general=dot_general, name=name)
