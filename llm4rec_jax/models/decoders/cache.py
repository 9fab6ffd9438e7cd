"""Keys and values of the tokens that a decoder has read, in fixed shapes: a Flax collection named "cache".

A row of the cache has S slots. Each call of the decoder fills the next L of them with the tokens of all rows, padding
included. The mask [B, S] says which slots hold real tokens; those that are not filled yet are False:

    slots              0 1 2 3 4 5 6
    two prompts        . a b c              mask 0 1 1 1 0 0 0      position of c: 2
                       d e f g                   1 1 1 1 0 0 0
    the next tokens            h .          mask 0 1 1 1 1 0 0      position of h: 3
"""

from typing import Any

import jax
import jax.numpy as jnp

from llm4rec_jax.models.decoders.config import DecoderConfig

Cache = dict[str, Any]
"""{"filled": number of filled slots, "layer_0": {"attention": {"keys": [B, S, …], "values": …, "filled": …}}, …}."""


def empty_cache(config: DecoderConfig, rows: int, slots: int) -> Cache:
    """Returns a cache without tokens.

    Args:
      config: Configuration of the decoder.
      rows: Number of texts B.
      slots: Largest number of tokens S of a text, padding included.

    Example:
      >>> config = DecoderConfig(num_hidden_layers=1, num_key_value_heads=2, head_dim=4)
      >>> empty_cache(config, rows=3, slots=5)["layer_0"]["attention"]["keys"].shape
      (3, 5, 2, 4)
    """

    def attention() -> Cache:
        states = jnp.zeros((rows, slots, config.num_key_value_heads, config.head_dim), config.dtype)
        return {"keys": states, "values": states, "filled": jnp.int32(0)}

    layers = {f"layer_{i}": {"attention": attention()} for i in range(config.num_hidden_layers)}
    return {"filled": jnp.int32(0), **layers}


def take_rows(cache: Cache, rows: jax.Array) -> Cache:
    """Returns a cache of the rows with these numbers, which may repeat: for beams, or texts with a common beginning."""
    return jax.tree.map(lambda array: array[rows] if array.ndim else array, cache)


def widen(cache: Cache, slots: int) -> Cache:
    """Returns the cache with further slots, `slots` in all."""

    def wider(array: jax.Array) -> jax.Array:
        return jnp.pad(array, ((0, 0), (0, slots - array.shape[1]), (0, 0), (0, 0))) if array.ndim else array

    return jax.tree.map(wider, cache)


def bytes_of_row(config: DecoderConfig, slots: int) -> int:
    """Returns the memory of one row."""
    width = config.num_key_value_heads * config.head_dim
    return 2 * config.num_hidden_layers * slots * width * config.dtype.itemsize
