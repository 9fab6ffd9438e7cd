"""Softmax losses over candidates that come in blocks, so that the matrix of all scores is never formed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Block(NamedTuple):
    """The scores of P examples with some of their candidates.

    Attributes:
      logits: Scores that the softmax is over, [P, K].
      is_target: Which candidate is the example's target, bool [P, K]. Each example has one among all blocks.
      kept: Which candidates count, bool [P, K] or [K]; the target counts in any case.
    """

    logits: jax.Array
    is_target: jax.Array
    kept: jax.Array


def softmax_in_blocks(block_of: Callable[[Any], Block], blocks: Any) -> jax.Array:
    """Cross entropy of the target among all candidates, as `full_softmax`, with blocks computed one after another.

    Memory is that of the scores of one block: every block is computed again for its gradient (as Wijmans et al. 2024,
    Cut Your Losses, arXiv 2411.09009, do for vocabularies). A score's arithmetic is that of the whole matrix, so values
    and gradients differ by the order of sums only.

    Args:
      block_of: Computes a block from its part of `blocks`.
      blocks: Tree of arrays with an entry a block, [n, …].

    Returns:
      The loss of each example, [P].

    Example:
      >>> users, items, target = jnp.ones((1, 2)), jnp.array([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]]), jnp.array([2])
      >>> def block_of(block):
      ...     item, place = block
      ...     return Block(users @ item.T, place == target[:, None], place >= 0)
      >>> blocks = items.reshape(3, 1, 2), jnp.arange(3)[:, None]
      >>> f"{softmax_in_blocks(block_of, blocks)[0]:.4f}"
      '0.7586'
    """

    def summarise(block: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        logits, is_target, kept = block_of(block)
        logits = jnp.where(kept | is_target, logits.astype(jnp.float32), -jnp.inf)
        # The lower bound is for examples without a candidate in this block.
        highest = jax.lax.stop_gradient(jnp.maximum(logits.max(axis=-1), jnp.finfo(jnp.float32).min))
        total = jnp.exp(logits - highest[..., None]).sum(axis=-1)
        return highest, total, jnp.where(is_target, logits, 0.0).sum(axis=-1)

    # The two passes are loops, which no compiler merges.
    highest_of, total_of, target_of = jax.lax.map(jax.checkpoint(summarise, prevent_cse=False), blocks)
    # The highest score is taken out of both terms: their difference stays precise however large the scores are.
    highest = highest_of.max(axis=0)
    total = (total_of * jnp.exp(highest_of - highest)).sum(axis=0)
    return jnp.log(total) + (highest - target_of.sum(axis=0))
