"""A decoder-only transformer over codes, as LC-Rec and MiniOneRec have it, here trained from scratch.

Beams are branches of one row, which begins with their history: a token sees the history and its own branch. Numbers in
the mask tell them apart, 0 for padding, 1 for the history and 2, 3, … for branches:

    tokens      start a b  .  c d  c e      a history of two tokens, and the prefixes (c, d) and (c, e)
    mask          1   1 1  0  2 2  3 3
    positions     0   1 2  .  3 4  3 4
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from llm4rec_jax.models.decoders.config import FULL, DecoderConfig
from llm4rec_jax.models.decoders.decoder import Decoder
from llm4rec_jax.models.generators.base import GENERATORS, LevelLogits, history_tokens, tokens_of, vocabulary_size
from llm4rec_jax.models.layers.rotary import rotation
from llm4rec_jax.models.layers.segments import same_text


class Trunk(NamedTuple):
    """The tokens [B, S] of histories and which are real, bool [B, S]."""

    tokens: jax.Array
    mask: jax.Array


class DecoderOnly(LevelLogits, Decoder):
    """A causal transformer over the codes of histories and of the items that come next.

    Attributes:
      config: Switches and sizes of the decoder.
      sizes: Number of codes of each level.
    """

    sizes: tuple[int, ...] = ()

    every_position: ClassVar[bool] = True

    def positions(self, mask: jax.Array) -> jax.Array:
        """Positions of tokens; those of a branch follow the history. [B, L] -> [B, L]."""
        if mask.dtype == bool:
            return super().positions(mask)
        own = jnp.tril(same_text(mask), -1).sum(-1, dtype=jnp.int32)
        history = (mask == 1).sum(-1, keepdims=True, dtype=jnp.int32)
        return own + jnp.where(mask > 1, history, 0)

    def block_inputs(self, x: jax.Array, mask: jax.Array) -> tuple[Any, ...]:
        """The keys that each token may attend to, [B, L, L], and angles of the rotation."""
        if mask.dtype == bool:
            return super().block_inputs(x, mask)
        c, at = self.config, self.positions(mask)
        keys = same_text(mask) | (mask == 1)[:, None]
        allowed = keys & (at[:, :, None] >= at[:, None, :])
        return {FULL: allowed}, {FULL: rotation(c.rope, c.head_dim, at, c.dtype)}

    def read(self, history: jax.Array, mask: jax.Array) -> Trunk:
        """Returns the tokens of histories: they are encoded beside their branches, at each level again."""
        return Trunk(*history_tokens(history, mask, self.sizes))

    def next_logits(self, memory: Trunk, prefixes: jax.Array) -> jax.Array:
        """Logits of the codes after prefixes; see `IdGenerator.next_logits`."""
        (users, beams, level), trunk = prefixes.shape, memory.tokens.shape[1]
        branches = jnp.broadcast_to(jnp.repeat(jnp.arange(beams) + 2, level), (users, beams * level))
        tokens = jnp.concatenate([memory.tokens, tokens_of(prefixes, self.sizes).reshape(users, -1)], axis=1)
        mask = jnp.concatenate([memory.mask.astype(jnp.int32), branches], axis=1)
        states = self.finish(self.layers(self.embed(tokens, mask, None), mask)[-1])
        if level:
            ends = states[:, trunk:].reshape(users, beams, level, -1)[:, :, -1]
        else:
            last = memory.mask.sum(-1)[:, None, None] - 1
            ends = jnp.broadcast_to(jnp.take_along_axis(states, last, axis=1), (users, beams, states.shape[-1]))
        return self.level_logits(ends, level)

    def code_logits(self, history: jax.Array, mask: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
        """Logits of all levels; see `IdGenerator.code_logits`."""
        # The targets are the history moved on by one item.
        items = jnp.concatenate([history[:, :1], targets], axis=1)
        tokens, real = history_tokens(items, jnp.concatenate([mask[:, :1], mask], axis=1), self.sizes)
        levels = len(self.sizes)
        # With L codes an item, the state at place L predicts the first code of the second item.
        states = self(tokens, real)[:, levels:-1].reshape(*targets.shape, -1)
        return tuple(self.level_logits(states[:, :, level], level) for level in range(levels))


@GENERATORS.register("decoder")
def decoder(
    sizes: tuple[int, ...],
    positions: int,
    *,
    width: int = 128,
    layers: int = 4,
    heads: int = 6,
    head_width: int = 64,
    ffn: int = 1024,
    dropout: float = 0.1,
) -> DecoderOnly:
    """Builds a decoder of Llama's kind: rotary positions, gated networks, RMS norms."""
    return DecoderOnly(
        DecoderConfig(
            vocab_size=vocabulary_size(sizes),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=head_width,
            intermediate_size=ffn,
            max_position_embeddings=positions,
        ).with_dropout(dropout),
        sizes,
    )
