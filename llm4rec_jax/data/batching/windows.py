"""From sequences to examples: which items are read, and which is to come next."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm4rec_jax.data.splits.split import Sequences


class Examples(NamedTuple):
    """Windows of training sequences: inputs are rows start…stop-1 of `Sequences`, targets start+1…stop of it.

    Attributes:
      user, start, stop: [E].
    """

    user: np.ndarray
    start: np.ndarray
    stop: np.ndarray


def windows(sequences: Sequences, history: int) -> Examples:
    """Cuts each user's sequence into windows of at most `history` inputs whose targets together are all but the first.

    Cut from the end, so that the most recent window is a full one.
    """
    lengths = np.diff(sequences.offsets) - 1
    per_user = np.maximum(-(-lengths // history), 0)
    user = np.repeat(np.arange(len(lengths)), per_user)
    nth = np.arange(len(user)) - np.repeat(np.cumsum(per_user) - per_user, per_user)
    stop = sequences.offsets[1:][user] - 1 - nth * history
    start = np.maximum(stop - history, sequences.offsets[:-1][user])
    return Examples(user, start, stop)


def single_targets(sequences: Sequences, history: int, first: bool = False) -> Examples:
    """One example a target: the inputs are the at most `history` items before it.

    Args:
      first: users' first items, which have no item before them, are targets too.
    """
    user = np.repeat(np.arange(len(sequences.offsets) - 1), np.diff(sequences.offsets))
    stop = np.arange(len(user))
    begin = sequences.offsets[:-1][user]
    keep = stop >= begin if first else stop > begin
    return Examples(user[keep], np.maximum(stop - history, begin)[keep], stop[keep])


def histories(sequences: Sequences, users: Sequence[int] | np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The last `length` items of each user, padded at the end: items [B, length] and mask [B, length]."""
    users = np.asarray(users)
    stop = sequences.offsets[users + 1]
    start = np.maximum(stop - length, sequences.offsets[users])
    column = np.arange(length)
    mask = column < (stop - start)[:, None]
    at = np.where(mask, start[:, None] + column, 0)
    if not len(sequences.items):
        return np.zeros(mask.shape, np.int32), mask
    return np.where(mask, sequences.items[at], 0).astype(np.int32), mask
