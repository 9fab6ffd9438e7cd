"""Beam search over the ids of a catalogue, all users of a batch side by side, in one jitted program.

A beam only ever moves to a node of the trie with an item below it that the user may be shown, so every id that is found
is an item's, and none of the user's own items is. A beam's score is the sum of its codes' log-probabilities, each over
all codes of its level: what the trie excludes is masked and not shared out among the rest.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm4rec_jax.semantic_ids import Trie
from llm4rec_jax.semantic_ids.trie import Level


class Beams(NamedTuple):
    """The best ids of B users, best first.

    Attributes:
      leaves: Numbers of the ids, int32 [B, K]; -1 where fewer were found.
      scores: Log-probabilities, float32 [B, K]; -inf where there is no id, NaN for a user whose scores are not finite.
      items: Number of items of each id that may be shown, int32 [B, K].
    """

    leaves: jax.Array
    scores: jax.Array
    items: jax.Array


def items_below(trie: Trie, allowed: jax.Array, excluded: jax.Array) -> list[jax.Array]:
    """Counts the items below each node that may be shown to each user.

    Args:
      trie: Ids of I items.
      allowed: Which items may be shown to anybody, bool [I].
      excluded: Items that a user is not shown, each once, int [B, M]; -1 is no item.

    Returns:
      For each level, int32 [B, nodes].
    """
    users = jnp.arange(len(excluded))[:, None]
    counted = ((excluded >= 0) & allowed[excluded]).astype(jnp.int32)
    counts = []
    for nodes, number in zip(jnp.asarray(trie.node_of_item), trie.num_nodes, strict=True):
        everywhere = jnp.zeros(number, jnp.int32).at[nodes].add(allowed.astype(jnp.int32))
        own = jnp.zeros((len(excluded), number), jnp.int32).at[users, nodes[excluded]].add(counted)
        counts.append(everywhere - own)
    return counts


def beam_search(
    next_logits: Callable[[jax.Array], jax.Array], levels: Sequence[Level], below: Sequence[jax.Array], beams: int
) -> Beams:
    """Searches for the ids with the highest log-probabilities.

    With as many beams as a level has nodes the search is exhaustive. At equal scores the id that comes first in the
    order of ids stands first.

    Args:
      next_logits: Prefixes int [B, K, t] to the logits [B, K, size of level t] of the next code.
      levels: Transitions of the trie.
      below: Result of `items_below`.
      beams: Number of ids K that are kept at each level.
    """
    users = len(below[0])
    nodes = jnp.zeros((users, 1), jnp.int32)
    scores, prefixes = jnp.zeros((users, 1)), jnp.zeros((users, 1, 0), jnp.int32)
    row, finite = jnp.arange(users)[:, None], jnp.ones(users, bool)
    for level, free in zip(levels, below, strict=True):
        logits = next_logits(prefixes).astype(jnp.float32)
        finite &= jnp.isfinite(logits).all(axis=(1, 2))
        codes, children = level.children(nodes)
        total = scores[..., None] + jnp.take_along_axis(jax.nn.log_softmax(logits), codes, axis=-1)
        open_ = (children >= 0) & (free[row[..., None], children] > 0)
        width = children.shape[2]
        codes, children, total = (a.reshape(users, -1) for a in (codes, children, jnp.where(open_, total, -jnp.inf)))
        scores, best = jax.lax.top_k(total, min(beams, total.shape[1]))
        nodes = jnp.where(scores > -jnp.inf, jnp.take_along_axis(children, best, axis=1), -1)
        taken = jnp.take_along_axis(codes, best, axis=1)
        prefixes = jnp.concatenate([prefixes[row, best // width], taken[..., None]], axis=-1)
    items = jnp.where(nodes >= 0, below[-1][row, nodes], 0)
    return Beams(nodes, jnp.where(finite[:, None], scores, jnp.nan), items)


def scores_of_ids(next_logits: Callable[[jax.Array], jax.Array], codes: jax.Array) -> jax.Array:
    """Returns the log-probabilities [B, N] of ids, given by their codes [B, N, L], as `beam_search` scores them."""
    scores = jnp.zeros(codes.shape[:2])
    for level in range(codes.shape[2]):
        log_probs = jax.nn.log_softmax(next_logits(codes[..., :level]).astype(jnp.float32))
        scores += jnp.take_along_axis(log_probs, codes[..., level : level + 1], axis=-1)[..., 0]
    return scores
