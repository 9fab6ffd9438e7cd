"""Texts to vectors: a language model and a pooling."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.models.encoders.pooling import output_width


class TextEncoder(nn.Module):
    """An encoder M and a pooling, which give one vector a text.

    Its parameters are {"encoder": …, "pooling": …}; poolings without parameters have no entry. A recommender holds its
    own under the same names, so either tree can be applied.

    Attributes:
      encoder: Language model, token ids to hidden states.
      pooling: Hidden states [U, L, W] and mask [U, L] to vectors [U, W].

    Example:
      >>> from llm4rec_jax.models.encoders.bert import Bert, BertConfig
      >>> from llm4rec_jax.models.encoders.pooling import POOLINGS
      >>> config = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
      >>> model = TextEncoder(Bert(config), POOLINGS.build("mean"))
      >>> ids, params = jnp.array([[3, 1, 4], [1, 5, 0]]), init(model, jax.random.key(0))
      >>> list(params), model.apply({"params": params}, ids, ids > 0).shape
      (['encoder'], (2, 8))
    """

    encoder: Encoder
    pooling: nn.Module

    @property
    def width(self) -> int:
        """Width W of the vectors."""
        return output_width(self.pooling, self.encoder.config.hidden_size)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Token ids [U, L] and mask [U, L] to float32 vectors [U, W]."""
        return self._pooled(self.encoder(ids, mask), mask)

    def packed(self, count: int, ids: jax.Array, texts: jax.Array) -> jax.Array:
        """Vectors of the texts of rows that hold several, see `Encoder.packed`.

        Args:
          count: Largest number S of texts in a row.
          ids: Token ids [R, L].
          texts: Number of each token's text in its row, [R, L]; 0 for padding.

        Returns:
          Float32 [R, S, W]; zeros where a row has fewer texts.
        """
        masks = texts[:, None] == 1 + jnp.arange(count)[:, None]
        return self._pooled(self.encoder.packed(ids, texts)[:, None], masks)

    def hidden_states(self, stop: int | None, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Hidden states before the encoder's block `stop`, [U, L, W], for ids and mask [U, L].

        With `stop` None, those before and after every block, [U, L, S, W] for S - 1 blocks.
        """
        if stop is None:
            return self.encoder.all_hidden_states(ids, mask)
        return self.encoder.hidden_states(ids, mask, stop)

    def encode_from(self, layer: int | None, states: jax.Array, mask: jax.Array) -> jax.Array:
        """Vectors [U, W] from what `hidden_states` gave for `layer`."""
        return self._pooled(self.encoder.encode_from(layer, states, mask), mask)

    def _pooled(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        return self.pooling(states, mask).astype(jnp.float32)


def init(model: TextEncoder, key: jax.Array, encoder_params: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Draws a text encoder's parameters.

    Args:
      model: The text encoder.
      key: Key of the random draws.
      encoder_params: Parameters of the language model, which are returned as they are; None draws them too.

    Returns:
      {"encoder": …, "pooling": …}; poolings without parameters have no entry.
    """

    def draw(key: jax.Array) -> dict[str, Any]:
        tokens = jnp.zeros((2, 2), jnp.int32)
        drawn = model.init(key, tokens, tokens == 0)["params"]
        # jit drops what is not returned, so random parameters of a given encoder are never computed.
        return {name: part for name, part in drawn.items() if name != "encoder" or encoder_params is None}

    params = jax.jit(draw)(key)
    return params if encoder_params is None else {**params, "encoder": encoder_params}
