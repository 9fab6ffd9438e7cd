"""Parts of attention scores that depend on the distance of two tokens, as T5 and DeBERTa have them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

BUCKETS = 32
"""Number of the buckets of distances, unless a configuration has another."""


def bias_by_distance(table: nn.Embed, length: int, longest: int = 128) -> jax.Array:
    """Looks up what each head adds to its scores, by the bucket of the distance from query to key.

    Args:
      table: Table with a row for each bucket and a column for each head.
      length: Number of tokens L.
      longest: As in `buckets`.

    Returns:
      [1, heads, L, L].
    """
    return table(jnp.asarray(buckets(length, table.num_embeddings, longest))).transpose(2, 0, 1)[None]


def buckets(length: int, count: int = BUCKETS, longest: int = 128) -> np.ndarray:
    """Numbers of the buckets that distances fall into (Raffel et al. 2020, arXiv 1910.10683, section 2.1).

    Half of them are for keys before the query, half for those after; near distances have one each, far ones share.

    Args:
      length: Number of tokens L.
      count: Number of buckets.
      longest: Distances from this one on share a bucket.

    Returns:
      [L, L] int, by query and key.

    Example:
      >>> buckets(3).tolist()
      [[0, 17, 18], [1, 0, 17], [2, 1, 0]]
    """
    distance = np.arange(length) - np.arange(length)[:, None]
    half, exact = count // 2, count // 4
    near = np.abs(distance)
    ratio = np.log(np.maximum(near, 1).astype(np.float32) / np.float32(exact)) / np.float32(np.log(longest / exact))
    far = np.minimum(exact + (ratio * np.float32(half - exact)).astype(int), half - 1)
    return (distance > 0) * half + np.where(near < exact, near, far)


def log_distances(distances: np.ndarray, count: int, longest: int) -> np.ndarray:
    """Rounds far distances to powers, and keeps near ones (He et al. 2021, arXiv 2111.09543, section 3).

    Args:
      distances: Any integers.
      count: Distances of at most half of it are kept.
      longest: Distances below this one become distances below `count`.

    Example:
      >>> log_distances(np.array([0, 1, 4, 5, 6, 10, 15, -15]), count=8, longest=16).tolist()
      [0, 1, 4, 5, 5, 7, 7, -7]
    """
    middle = count // 2
    near = np.abs(distances)
    ratio = np.log(np.maximum(near, middle).astype(np.float32) / np.float32(middle))
    ratio = ratio / np.log(np.float32((longest - 1) / middle))
    far = np.ceil(ratio * np.float32(middle - 1)).astype(int) + middle
    return np.where(near <= middle, distances, np.sign(distances) * far)


def to_keys(scores: jax.Array) -> jax.Array:
    """Orders scores of distances by key: [..., L, 2 L - 1] to [..., L, L].

    The columns of row i are for the distances from L - 1 down to 1 - L, and that of key j is i - j:

        row 0:  2  1 [0 -1 -2]
        row 1:  2 [1  0 -1]-2
        row 2: [2  1  0]-1 -2

    With one more column, these parts begin 2 L - 1 values after one another. Slices cost less than looking up each.

    Example:
      >>> to_keys(jnp.array([[2, 1, 0, -1, -2]] * 3)).tolist()
      [[0, -1, -2], [1, 0, -1], [2, 1, 0]]
    """
    *batch, length, width = scores.shape
    wider = jnp.pad(scores, [(0, 0)] * (len(batch) + 1) + [(0, 1)])
    flat = wider.reshape(*batch, length * (width + 1))[..., length - 1 : length - 1 + length * width]
    return flat.reshape(*batch, length, width)[..., :length]
