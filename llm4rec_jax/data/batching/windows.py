"""Examples cut from sequences: the items that are read and the items that come next."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm4rec_jax.data.splits.split import Sequences


class Examples(NamedTuple):
    """Windows of training sequences: the inputs are entries start…stop-1 of `Sequences`, the targets start+1…stop.

    Attributes:
      user: rows of the user table, [E].
      start: first entry of each window, [E].
      stop: last entry of each window, which is only a target, [E].
    """

    user: np.ndarray
    start: np.ndarray
    stop: np.ndarray


def windows(sequences: Sequences, history: int) -> Examples:
    """Cuts each user's sequence into windows of at most `history` inputs whose targets together are all but the first.

    Windows are cut from the end, so that the most recent one is full.

    Example:
      >>> sequences = Sequences(np.array([0, 5]), np.arange(5, dtype=np.int32), None, None)
      >>> [(int(start), int(stop)) for _, start, stop in zip(*windows(sequences, 3))]
      [(1, 4), (0, 1)]
    """
    lengths = np.diff(sequences.offsets) - 1
    per_user = np.maximum(-(-lengths // history), 0)
    user = np.repeat(np.arange(len(lengths)), per_user)
    nth = np.arange(len(user)) - np.repeat(np.cumsum(per_user) - per_user, per_user)
    stop = sequences.offsets[1:][user] - 1 - nth * history
    start = np.maximum(stop - history, sequences.offsets[:-1][user])
    return Examples(user, start, stop)


def single_targets(sequences: Sequences, history: int, first: bool = False) -> Examples:
    """Cuts one example a target, whose inputs are at most `history` items before it.

    Args:
      sequences: training sequences.
      history: number of inputs, at most.
      first: whether users' first items, which have no item before them, are targets too.

    Example:
      >>> sequences = Sequences(np.array([0, 3]), np.arange(3, dtype=np.int32), None, None)
      >>> [(int(start), int(stop)) for _, start, stop in zip(*single_targets(sequences, 1))]
      [(0, 1), (1, 2)]
    """
    user = np.repeat(np.arange(len(sequences.offsets) - 1), np.diff(sequences.offsets))
    stop = np.arange(len(user))
    begin = sequences.offsets[:-1][user]
    keep = stop >= begin if first else stop > begin
    return Examples(user[keep], np.maximum(stop - history, begin)[keep], stop[keep])


def histories(sequences: Sequences, users: Sequence[int] | np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the last `length` items of each user, padded at the end: items [B, length] and mask [B, length].

    Example:
      >>> sequences = Sequences(np.array([0, 3, 4]), np.array([7, 8, 9, 5], np.int32), None, None)
      >>> items, mask = histories(sequences, [0, 1], 2)
      >>> items.tolist(), mask.tolist()
      ([[8, 9], [5, 0]], [[True, True], [True, False]])
    """
    users = np.asarray(users)
    stop = sequences.offsets[users + 1]
    start = np.maximum(stop - length, sequences.offsets[users])
    column = np.arange(length)
    mask = column < (stop - start)[:, None]
    at = np.where(mask, start[:, None] + column, 0)
    if not len(sequences.items):
        return np.zeros(mask.shape, np.int32), mask
    return np.where(mask, sequences.items[at], 0).astype(np.int32), mask
