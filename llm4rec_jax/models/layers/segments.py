"""Rows that hold several texts side by side, each of which attends to itself only and has positions from 0 on.

A mask [B, L] tells which text a token belongs to. Where each row is one text it is bool, true for real tokens.
Otherwise it is int: 0 for padding, and 1, 2, … for the texts of the row in order.
"""

import jax
import jax.numpy as jnp


def same_text(mask: jax.Array) -> jax.Array:
    """Returns which keys a token may attend to: those of its own text.

    Args:
      mask: [B, L] bool, or int numbers of texts.

    Returns:
      Bool, [B, 1, L] where each row is one text, otherwise [B, L, L].

    Example:
      >>> same_text(jnp.array([[1, 2, 2]])).astype(int).tolist()
      [[[1, 0, 0], [0, 1, 1], [0, 1, 1]]]
    """
    if mask.dtype == bool:
        return mask[:, None, :]
    return mask[:, :, None] == mask[:, None, :]


def restart(positions: jax.Array, mask: jax.Array) -> jax.Array:
    """Lets positions begin anew with each text of a row.

    Args:
      positions: [B, L] or [L] int, ascending along a row.
      mask: [B, L] bool, or int numbers of texts. With a bool one the positions are returned as they are.

    Returns:
      [B, L] or [L].

    Example:
      >>> restart(jnp.arange(5), jnp.array([[1, 1, 2, 2, 2]])).tolist()
      [[0, 1, 0, 1, 2]]
    """
    if mask.dtype == bool:
        return positions
    positions = jnp.broadcast_to(positions, mask.shape)
    later = jnp.pad(mask[:, 1:] > mask[:, :-1], ((0, 0), (1, 0)))
    return positions - jax.lax.cummax(jnp.where(later, positions, 0), axis=1)
