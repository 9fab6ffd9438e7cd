"""A probe of what a language model knows of a catalogue before it is trained on it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.batching.buckets import text_bucket
from llm4rec_jax.inference.batched import map_in_fixed_batches
from llm4rec_jax.inference.generate.cached import Weights, check_causal
from llm4rec_jax.inference.generate.likelihood import answer_table
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.peft.core import Peft, forward
from llm4rec_jax.sharding import place


def completed_texts(
    encoder: Encoder, method: Peft, weights: Weights, mesh: Mesh, texts: Sequence[Sequence[int]]
) -> np.ndarray:
    """Tells which texts a language model completes, token by token, from their first half.

    A model that knows most titles of a catalogue has probably read the data, or pages about its items, so that its
    results say less about recommendation. Greedy generation gives the second half exactly where each of its tokens is
    the likeliest one after those before it, so one pass over each text decides.

    Args:
      encoder: A decoder, loaded with `language_head=True`.
      method: Parameter-efficient method of the decoder.
      weights: Parameters and delta.
      mesh: The devices.
      texts: Tokens of n texts. The first half of an odd number has one more.

    Returns:
      Bool [n]; False for texts of one token, which have no second half.
    """
    check_causal(encoder, method)
    table, counts = answer_table(texts)
    length = text_bucket(table.shape[1], encoder.config.max_position_embeddings)
    ids = np.pad(table, ((0, 0), (0, length - table.shape[1])))
    mask = np.pad(counts, ((0, 0), (0, length - counts.shape[1]))) > 0

    def completes(weights: Weights, ids: jax.Array, mask: jax.Array) -> jax.Array:
        states = forward(encoder, method, *weights, ids, mask)
        likeliest = forward(encoder, method, *weights, states[:, :-1], apply="logits").argmax(axis=-1)
        number = mask.sum(axis=1, keepdims=True)
        second = mask[:, 1:] & (jnp.arange(1, ids.shape[1]) >= (number + 1) // 2)
        return ((likeliest == ids[:, 1:]) | ~second).all(axis=1) & (number[:, 0] > 1)

    run: Any = map_in_fixed_batches(completes, mesh, texts=True)
    return run(place(weights, mesh), ids, mask)
