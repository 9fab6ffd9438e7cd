"""That nothing which is to be predicted can be read: asserted in every run, on the arrays that it reads."""

import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.data.split import Sequences


class Leak(DataError):
    """A history that holds what is to be predicted from it."""


def no_leak(dataset: Dataset, history: Sequences, targets: Sequences, what: str) -> None:
    """Compares what is read with what is predicted, pair by pair of user and item.

    An item that a user returns to may stand in both, but no more often than the data has it: a history that took a
    target in has one too many. O(E log T) for E interactions and T targets; `Split` itself checks that every row has
    one role, and this, what was made of the rows.

    Args:
        dataset: all interactions.
        history, targets: users in the order of the user table.
        what: what the history is, for the message.

    Raises:
        Leak: naming the first user and item.
    """
    data = dataset.interactions
    wanted = np.unique(_pairs(_users(targets), targets.items, dataset.num_items))
    read = _times(wanted, _pairs(_users(history), history.items, dataset.num_items))
    if not read.any():
        return
    there = _times(wanted, _pairs(data.user, data.item, dataset.num_items))
    predicted = _times(wanted, _pairs(_users(targets), targets.items, dataset.num_items))
    leaked = np.flatnonzero(read + predicted > there)
    if leaked.size:
        user, item = divmod(int(wanted[leaked[0]]), dataset.num_items)
        raise Leak(
            f"{what} of user {dataset.users['user_id'][user]!r} holds item {dataset.items['item_id'][item]!r}, which "
            f"is to be predicted from it ({leaked.size} such pairs): figures would be too good. Mend the split"
        )


def within_users(sequences: Sequences, user: np.ndarray, start: np.ndarray, stop: np.ndarray) -> None:
    """Checks examples [E]: what is read, from `start`, lies before the last target, at `stop`, and all of one user.

    Raises:
        Leak: naming the first example.
    """
    wrong = (start < sequences.offsets[user]) | (stop < start) | (stop >= sequences.offsets[user + 1])
    if wrong.any():
        at = int(np.argmax(wrong))
        raise Leak(
            f"training example {at} reads rows {start[at]} to {stop[at]} and user row {user[at]} has "
            f"{sequences.offsets[user[at]]} to {sequences.offsets[user[at] + 1] - 1}: it reads another user's, or what "
            "comes after its target. Mend how examples are cut"
        )


def _users(sequences: Sequences) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(sequences.offsets) - 1), np.diff(sequences.offsets))


def _pairs(user: NDArray[np.integer], item: NDArray[np.integer], num_items: int) -> NDArray[np.int64]:
    return user * np.int64(num_items) + item


def _times(wanted: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each of the wanted pairs, ascending, occurs [W]."""
    at = np.minimum(np.searchsorted(wanted, pairs), max(len(wanted) - 1, 0))
    if not len(wanted):
        return np.zeros(0, np.int64)
    return np.bincount(at[wanted[at] == pairs], minlength=len(wanted))
