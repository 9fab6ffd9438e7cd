"""TIGER: a T5 that reads the codes of a history and writes those of the next item (Rajput et al. 2023, 2305.05065).

The parameters are those of the encoder, see `models.encoders.t5`, and:

    decoder_{i}/{attention,attention_norm,cross,cross_norm,ffn,ffn_norm}    blocks of the decoder
    decoder_bias, decoder_norm                                              distances, and the last norm
"""

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.models.encoders.attention import Attention
from llm4rec_jax.models.encoders.t5 import T5, FeedForward, T5Config
from llm4rec_jax.models.generators.base import GENERATORS, LevelLogits, history_tokens, tokens_of, vocabulary_size
from llm4rec_jax.models.layers.attention import attend
from llm4rec_jax.models.layers.dropout import dropout
from llm4rec_jax.models.layers.linear import dense, normal
from llm4rec_jax.models.layers.norms import RMSNorm


class Memory(NamedTuple):
    """Keys and values of a history for each block of the decoder, and which tokens are real.

    Attributes:
      keys, values: One a block, [B, S, heads, d].
      mask: [B, S].
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    mask: jax.Array


class CrossAttention(nn.Module):
    """Attention of the decoder to the states of the encoder."""

    config: T5Config

    def setup(self) -> None:
        c = self.config
        inner = c.num_attention_heads * c.head_width
        self.query, self.key, self.value, self.output = (
            dense(width, name, c.dtype, c.initializer_range, bias=False)
            for name, width in (("query", inner), ("key", inner), ("value", inner), ("output", c.hidden_size))
        )

    def remember(self, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        """States [B, S, D] to keys and values [B, S, heads, d]."""
        return self._heads(self.key(states)), self._heads(self.value(states))

    def __call__(self, x: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
        """States [B, Q, D], keys and values [B, S, heads, d] and mask [B, S] to [B, Q, D]."""
        rate = self.config.attention_probs_dropout_prob
        mixed = attend(
            self._heads(self.query(x)),
            keys,
            values,
            mask[:, None, None],
            lambda weights: dropout(self, weights, rate),
            scale=1.0,
        )
        return self.output(mixed.reshape(*x.shape[:-1], -1))

    @nn.nowrap
    def _heads(self, states: jax.Array) -> jax.Array:
        return states.reshape(*states.shape[:-1], self.config.num_attention_heads, self.config.head_width)


class DecoderLayer(nn.Module):
    """A pre-norm block of the decoder. The prefixes of a user share its keys and values: [B, K, t, D] to the same."""

    config: T5Config

    def setup(self) -> None:
        c = self.config
        self.attention_norm, self.cross_norm, self.ffn_norm = (RMSNorm(c.layer_norm_eps, c.dtype) for _ in range(3))
        self.attention = Attention(c, scale=1.0, use_bias=False)
        self.cross, self.ffn = CrossAttention(c), FeedForward(c)

    def __call__(self, x: jax.Array, bias: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
        users, beams, length, width = x.shape
        rate = self.config.hidden_dropout_prob
        states = self.attention_norm(x).reshape(users * beams, length, width)
        attended = self.attention(states, jnp.ones(states.shape[:2], bool), bias)
        x = x + dropout(self, attended.reshape(x.shape), rate)
        attended = self.cross(self.cross_norm(x).reshape(users, beams * length, width), keys, values, mask)
        x = x + dropout(self, attended.reshape(x.shape), rate)
        return x + dropout(self, self.ffn(self.ffn_norm(x)), rate)


class Tiger(LevelLogits, T5):
    """An encoder-decoder over codes.

    Attributes:
      config: Sizes of the network.
      sizes: Number of codes of each level.
    """

    sizes: tuple[int, ...] = ()

    every_position: ClassVar[bool] = False

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.decoder = [DecoderLayer(c, name=f"decoder_{i}") for i in range(c.num_hidden_layers)]
        self.decoder_norm = RMSNorm(c.layer_norm_eps, c.dtype)
        self.decoder_bias = nn.Embed(
            c.relative_attention_num_buckets, c.num_attention_heads, embedding_init=normal(c.initializer_range)
        )

    def read(self, history: jax.Array, mask: jax.Array) -> Memory:
        """Encodes histories; see `IdGenerator.read`."""
        tokens, real = history_tokens(history, mask, self.sizes)
        states = self(tokens, real)
        keys, values = zip(*(layer.cross.remember(states) for layer in self.decoder), strict=True)
        return Memory(keys, values, real)

    def decode(self, memory: Memory, prefixes: jax.Array) -> jax.Array:
        """Prefixes [B, K, t] to the states [B, K, t + 1, D] from which their codes, and the next one, are predicted."""
        c = self.config
        tokens = jnp.pad(tokens_of(prefixes, self.sizes), ((0, 0), (0, 0), (1, 0)))
        x, length = self.embeddings(tokens), tokens.shape[-1]
        # Key j is i - j before query i. A distance has a bucket of its own here, as in T5 below half of their number.
        distance = np.arange(length)[:, None] - np.arange(length)
        near = self.decoder_bias(jnp.asarray(np.maximum(distance, 0))).transpose(2, 0, 1)
        bias = jnp.where(distance >= 0, near, jnp.finfo(jnp.float32).min)[None]
        for layer, keys, values in zip(self.decoder, memory.keys, memory.values, strict=True):
            x = layer(x, bias, keys, values, memory.mask)
        return dropout(self, self.decoder_norm(x), c.hidden_dropout_prob)

    def next_logits(self, memory: Memory, prefixes: jax.Array) -> jax.Array:
        """Logits of the codes after prefixes; see `IdGenerator.next_logits`."""
        return self.level_logits(self.decode(memory, prefixes)[:, :, -1], prefixes.shape[-1])

    def code_logits(self, history: jax.Array, mask: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
        """Logits of all levels; see `IdGenerator.code_logits`."""
        states = self.decode(self.read(history, mask), targets[..., :-1])
        return tuple(self.level_logits(states[:, :, level], level) for level in range(len(self.sizes)))


@GENERATORS.register("tiger")
def tiger(
    sizes: tuple[int, ...],
    positions: int,
    *,
    width: int = 128,
    layers: int = 4,
    heads: int = 6,
    head_width: int = 64,
    ffn: int = 1024,
    dropout: float = 0.1,
) -> Tiger:
    """Builds an encoder and a decoder of `layers` blocks each; the defaults are the paper's sizes."""
    config = T5Config(
        vocab_size=vocabulary_size(sizes),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        head_dim=head_width,
        intermediate_size=ffn,
        max_position_embeddings=positions,
    ).with_dropout(dropout)
    if len(sizes) > config.relative_attention_num_buckets // 2:
        raise ValueError(
            f"{len(sizes)} levels, but the decoder tells {config.relative_attention_num_buckets // 2} apart"
        )
    return Tiger(config, sizes)
