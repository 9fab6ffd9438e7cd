"""The one transformer that Llama, Mistral, Qwen, Gemma, Phi-3, GPT-2 and OPT are, by the switches of `DecoderConfig`;
without its causal mask it is ModernBERT and NomicBERT. Its parts have the names of `encoders.base`, and these besides:

    .positions                                       mask [B, L] -> the position of every token [B, L]
    layer_3/attention/{query_norm,key_norm}          norms of each head
    layer_3/{attention,ffn}_post_norm                norms of what the sublayers give
    lm_head                                          next-token logits, where they have a matrix of their own
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.decoders.config import FULL, SLIDING, DecoderConfig
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.models.layers.activations import ACTIVATIONS
from llm4rec_jax.models.layers.attention import attend
from llm4rec_jax.models.layers.dropout import dropout
from llm4rec_jax.models.layers.linear import Dense, dense, normal
from llm4rec_jax.models.layers.norms import RMSNorm
from llm4rec_jax.models.layers.rotary import rotate, rotation
from llm4rec_jax.models.layers.segments import restart, same_text


def _norm(config: DecoderConfig, name: str) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(
            config.norm_eps, config.dtype, use_bias=config.norm_bias, use_fast_variance=False, name=name
        )
    return RMSNorm(config.norm_eps, config.dtype, config.norm == "rms_offset", name=name)


def _dense(config: DecoderConfig, features: int, name: str, bias: bool) -> Dense:
    return dense(features, name, config.dtype, config.initializer_range, bias)


class Embeddings(nn.Module):
    """Word embeddings and, where there are any, those of positions and token types. [B, L] -> [B, L, D]."""

    config: DecoderConfig

    def setup(self) -> None:
        c = self.config
        init = normal(c.initializer_range)
        # In float32 whatever the compute dtype: a gradient is the sum over all tokens of a kind, thousands of them.
        self.word = nn.Embed(c.vocab_size, c.hidden_size, embedding_init=init)
        if c.learned_positions:
            rows = c.max_position_embeddings + c.position_offset
            self.position = nn.Embed(rows, c.hidden_size, embedding_init=init)
        if c.type_vocab_size:
            self.token_type = nn.Embed(c.type_vocab_size, c.hidden_size, embedding_init=init)
        if c.embedding_norm:
            self.norm = _norm(c, "norm")

    def __call__(self, ids: jax.Array, positions: jax.Array, token_type: jax.Array | None = None) -> jax.Array:
        return self._complete(self.words(ids), positions, token_type)

    def of_vectors(self, vectors: jax.Array, positions: jax.Array) -> jax.Array:
        """Embeddings from vectors [B, L, D] in place of those of words, at positions [B, L]."""
        return self._complete(vectors, positions, None)

    @nn.nowrap
    def words(self, ids: jax.Array) -> jax.Array:
        """Word embeddings of ids [B, L], scaled where the family does so. [B, L, D]."""
        c = self.config
        x = self.word(ids)
        if c.embedding_scale is not None:
            # Rounded to the compute dtype, as Gemma was trained.
            x = x.astype(c.dtype) * jnp.asarray(c.embedding_scale, c.dtype)
        return x

    @nn.nowrap
    def _complete(self, x: jax.Array, positions: jax.Array, token_type: jax.Array | None) -> jax.Array:
        """Adds the embeddings of positions [B, L] and token types to those of words [B, L, D]."""
        # A method may have put tokens of its own before the words.
        c, length = self.config, positions.shape[-1]
        if c.learned_positions:
            if length > c.max_position_embeddings:
                raise ValueError(
                    f"{length} tokens, but the encoder has {c.max_position_embeddings} positions: "
                    "truncate the text when tokenising"
                )
            x = x + self.position(positions + c.position_offset)
        if c.type_vocab_size:
            x = x + self.token_type(jnp.zeros_like(positions) if token_type is None else token_type)
        if c.embedding_norm:
            x = self.norm(x)
        return dropout(self, x.astype(c.dtype), c.hidden_dropout_prob)


class Attention(nn.Module):
    """Self-attention with its output projection. [B, L, D] -> [B, L, D].

    Attributes:
      config: Switches of the decoder.
      index: Number of the block.
    """

    config: DecoderConfig
    index: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *angles: jax.Array) -> jax.Array:
        c = self.config

        def project(name: str, heads: int) -> jax.Array:
            states = _dense(c, heads * c.head_dim, name, c.query_bias)(x)
            return states.reshape(*x.shape[:-1], heads, c.head_dim)

        q = project("query", c.num_attention_heads)
        k, v = (project(name, c.num_key_value_heads) for name in ("key", "value"))
        if c.qk_norm:
            q, k = _norm(c, "query_norm")(q), _norm(c, "key_norm")(k)
        if angles:
            q, k = rotate(q, *angles), rotate(k, *angles)
        mixed = self.attend(q, *self.remember(k, v), mask)
        return _dense(c, c.hidden_size, "output", c.output_bias)(mixed.reshape(*x.shape[:-1], -1))

    @nn.nowrap
    def remember(self, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns keys and values [B, S, …] of all slots of the cache, after these are put there; see `cache`.

        Without a cache they are returned as they are.
        """
        if not self.has_variable("cache", "filled"):
            return k, v
        filled, kept = self.get_variable("cache", "filled"), []
        for name, states in (("keys", k), ("values", v)):
            slots = jax.lax.dynamic_update_slice_in_dim(self.get_variable("cache", name), states, filled, axis=1)
            self.put_variable("cache", name, slots)
            kept.append(slots)
        self.put_variable("cache", "filled", filled + k.shape[1])
        return kept[0], kept[1]

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        """Scaled dot-product attention.

        Args:
          q: [B, L, heads, head_dim]; k, v: [B, S, key heads, head_dim]; q and k are rotated already.
          mask: [B, L, S] bool, which keys each token may attend to; for splash attention [B, S], see `layers.segments`.

        Returns:
          [B, L, heads, head_dim].
        """
        c = self.config
        scale = c.head_dim**-0.5 if c.attention_scale is None else c.attention_scale
        scale = scale / (self.index + 1) if c.inverse_layer_scale else scale
        if c.attention == "splash":
            from llm4rec_jax.models.layers.splash import splash_attend  # Takes a second to import

            window = c.sliding_window if c.layer_type(self.index) == SLIDING else None
            return splash_attend(q, k, v, mask, c.causal, window, scale, c.attention_softcap)
        allowed = mask[:, None]
        if c.attention == "cudnn":
            if q.shape[1] % 2 or k.shape[1] % 2:
                raise ValueError(
                    f"cuDNN's attention wants an even number of tokens, and there are {q.shape[1]} over {k.shape[1]}: "
                    "give xla as the encoder's attention"
                )
            return jax.nn.dot_product_attention(q, k, v, mask=allowed, scale=scale, implementation="cudnn")

        def drop(weights: jax.Array) -> jax.Array:
            return dropout(self, weights, c.attention_probs_dropout_prob)

        return attend(q, k, v, allowed, drop, scale=scale, softcap=c.attention_softcap)


class FeedForward(nn.Module):
    """down(act(gate(x)) · up(x)), or down(act(up(x))). [B, L, D] -> [B, L, D]."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, act = self.config, ACTIVATIONS[self.config.hidden_act]
        if c.gated:
            gate, up = (_dense(c, c.intermediate_size, name, c.ffn_bias)(x) for name in ("gate", "up"))
            hidden = act(gate) * up
        else:
            hidden = act(_dense(c, c.intermediate_size, "up", c.ffn_bias)(x))
        return _dense(c, c.hidden_size, "down", c.ffn_bias)(hidden)


class Layer(nn.Module):
    """A transformer block. [B, L, D] -> [B, L, D].

    Attributes:
      config: Switches of the decoder.
      index: Number of the block.
    """

    config: DecoderConfig
    index: int

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        allowed: dict[str, jax.Array],
        angles: dict[str, tuple[jax.Array, ...]],
    ) -> jax.Array:
        c, kind = self.config, self.config.layer_type(self.index)

        def add(x: jax.Array, sublayer: Callable[[jax.Array], jax.Array], name: str) -> jax.Array:
            normed_already = not c.pre_norm or (c.embedding_norm and self.index == 0 and name == "attention")
            y = sublayer(x if normed_already else _norm(c, f"{name}_norm")(x))
            y = _norm(c, f"{name}_post_norm")(y) if c.post_norms else y
            x = x + dropout(self, y, c.hidden_dropout_prob)
            return x if c.pre_norm else _norm(c, f"{name}_norm")(x)

        attention = Attention(c, self.index, name="attention")
        x = add(x, lambda x: attention(x, allowed[kind], *angles[kind]), "attention")
        return add(x, FeedForward(c, name="ffn"), "ffn")


class Decoder(Encoder):
    """A decoder-only language model without its head, or with it.

    Positions count real tokens, so texts may be padded on either side with the same states. With a collection "cache"
    of `cache.empty_cache` it reads texts part by part; the mask is then that of all slots, [B, S]. A mask [B, L, S]
    says which slots each token sees, itself included: those of its own text in order, as for the branches of a tree.

    Example:
      >>> from llm4rec_jax.models.layers.rotary import Rope
      >>> config = DecoderConfig(vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, head_dim=4,
      ...                        num_key_value_heads=1, intermediate_size=8, rope=Rope())
      >>> ids = jnp.array([[3, 1, 4]])
      >>> decoder, mask = Decoder(config), jnp.ones_like(ids)
      >>> variables = decoder.init(jax.random.key(0), ids, mask)
      >>> states = decoder.apply(variables, ids, mask)
      >>> decoder.apply(variables, states, method="logits").shape
      (1, 3, 7)
    """

    config: DecoderConfig

    def setup(self) -> None:
        c = self.config
        layer = nn.remat(Layer) if c.remat else Layer
        self.embeddings = Embeddings(c)
        self.blocks = [layer(c, i, name=f"layer_{i}") for i in range(c.num_hidden_layers)]
        if c.pre_norm:
            self.final_norm = _norm(c, "final_norm")
        if c.language_head and not c.tie_word_embeddings:
            self.lm_head = _dense(c, c.vocab_size, "lm_head", False)

    def positions(self, mask: jax.Array) -> jax.Array:
        """Positions of tokens among the real ones: mask [0, 0, 1, 1, 1] gives [0, 0, 0, 1, 2]. [B, L] -> [B, L].

        With a mask [B, L, S] they are the number of slots that a token sees before itself, [B, L].
        """
        if mask.ndim == 3:
            return mask.sum(axis=-1, dtype=jnp.int32) - 1
        return restart(jnp.maximum(jnp.cumsum(mask.astype(bool), axis=-1, dtype=jnp.int32) - 1, 0), mask)

    @nn.nowrap
    def read_now(self, slots: jax.Array, length: int) -> jax.Array:
        """Returns the columns [B, L] of [B, S] whose tokens are read now; all of them without a cache."""
        if not self.has_variable("cache", "filled"):
            return slots
        return jax.lax.dynamic_slice_in_dim(slots, self.get_variable("cache", "filled"), length, axis=1)

    def embed(self, ids: jax.Array, mask: jax.Array, token_type: jax.Array | None) -> jax.Array:
        """Hidden states before the first block, [B, L, D]."""
        x = self.embeddings(ids, self.read_now(self.positions(mask), ids.shape[1]), token_type)
        if self.is_initializing() and self.config.language_head:
            self.logits(x[:1, :1])
        return x

    def of_vectors(self, vectors: jax.Array, mask: jax.Array) -> jax.Array:
        """Hidden states of the last layer, from vectors in place of word embeddings.

        They are transformers' for `inputs_embeds`. The table of word embeddings is not read, so parameters may lack it.

        Args:
          vectors: [B, L, D].
          mask: [B, L] bool or 0/1, which vectors are real.

        Returns:
          [B, L, D] in the compute dtype.
        """
        mask = mask.astype(bool)
        return self.finish(self.layers(self.embeddings.of_vectors(vectors, self.positions(mask)), mask)[-1])

    def block_inputs(self, x: jax.Array, mask: jax.Array) -> tuple[Any, ...]:
        """Returns the keys that each token may attend to, [B, L, S], and angles of the rotation, by type of block."""
        c, positions = self.config, self.positions(mask)
        at = self.read_now(positions, x.shape[1])
        if mask.ndim == 3:
            # Slots that a token sees hold its text in order: with 1 0 1 1 the distances of the 1s are 2, 1 and 0.
            distance = mask.sum(axis=-1, keepdims=True) - jnp.cumsum(mask, axis=-1)
            keys = mask
        else:
            distance = at[:, :, None] - positions[:, None, :]
            keys = jnp.broadcast_to(same_text(mask), distance.shape)
        allowed = {FULL: keys & (distance >= 0) if c.causal else keys}
        if c.sliding_window is not None:
            allowed[SLIDING] = allowed[FULL] & (jnp.abs(distance) < c.sliding_window)
        if c.attention == "splash":
            # The kernel makes these masks itself, block by block.
            allowed = dict.fromkeys(allowed, mask)
        if c.learned_positions:
            return allowed, dict.fromkeys(allowed, ())
        return allowed, {kind: rotation(c.rope_of(kind), c.head_dim, at, c.dtype) for kind in allowed}

    def finish(self, x: jax.Array) -> jax.Array:
        """Hidden states of the last layer [B, L, D] from those after the last block."""
        if self.has_variable("cache", "filled"):
            self.put_variable("cache", "filled", self.get_variable("cache", "filled") + x.shape[1])
        return self.final_norm(x) if self.config.pre_norm else x

    def logits(self, states: jax.Array) -> jax.Array:
        """Scores of every token of the vocabulary as the next one.

        Args:
          states: [..., D], as `__call__` returns them.

        Returns:
          [..., V] float32.

        Raises:
          ValueError: the head is untied and was not loaded.
        """
        c = self.config
        if c.tie_word_embeddings:
            scores = states @ self.embeddings.word.embedding.T.astype(c.dtype)
        elif c.language_head:
            scores = self.lm_head(states)
        else:
            raise ValueError("the language model was loaded without its head: load it with language_head=True")
        scores = scores.astype(jnp.float32)
        return scores if c.logit_softcap is None else c.logit_softcap * jnp.tanh(scores / c.logit_softcap)
