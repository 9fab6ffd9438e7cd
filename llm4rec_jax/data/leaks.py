"""That nothing which is to be predicted can be read: asserted in every run, on the arrays that it reads."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.data.mapped import chunks
from llm4rec_jax.data.split import Sequences


class Leak(DataError):
    """A history that holds what is to be predicted from it."""


def no_leak(dataset: Dataset, history: Sequences, targets: Sequences, what: str) -> None:
    """Compares what is read with what is predicted, pair by pair of user and item.

    An item that a user returns to may stand in both, but no more often than the data has it: a history that took a
    target in has one too many. Time and memory are O(E) and O(T) for E interactions and T targets, some tens of
    nanoseconds an interaction; `Split` itself checks that every row has one role, and this, what was made of the rows.

    Args:
        dataset: all interactions.
        history, targets: users in the order of the user table.
        what: what the history is, for the message.

    Raises:
        Leak: naming the first user and item.
    """
    num_items = dataset.num_items
    wanted, predicted = np.unique(
        np.concatenate([np.zeros(0, np.int64), *_pairs(targets, num_items)]), return_counts=True
    )
    read = _times(wanted, _pairs(history, num_items))
    # Hardly ever is there one: only of those is it counted how often the data has them.
    twice = np.flatnonzero(read)
    if not twice.size:
        return
    wanted, read, predicted = wanted[twice], read[twice], predicted[twice]
    data = dataset.interactions
    there = _times(wanted, (_pair(data.user[part], data.item[part], num_items) for part in chunks(len(data))))
    leaked = np.flatnonzero(read + predicted > there)
    if leaked.size:
        user, item = divmod(int(wanted[leaked[0]]), num_items)
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


def _pair(user: NDArray[np.integer], item: NDArray[np.integer], num_items: int) -> NDArray[np.int64]:
    return user * np.int64(num_items) + item


def _pairs(sequences: Sequences, num_items: int) -> Iterator[NDArray[np.int64]]:
    """The pairs of user and item of all entries, so many at a time."""
    for part in chunks(len(sequences.items)):
        first, last = np.searchsorted(sequences.offsets, (part.start, part.stop - 1), side="right") - 1
        lengths = np.diff(np.clip(sequences.offsets[first : last + 2], part.start, part.stop))
        yield _pair(np.repeat(np.arange(first, last + 1), lengths), sequences.items[part], num_items)


def _times(wanted: NDArray[np.int64], parts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """How often each of the wanted pairs, ascending, occurs in all parts together [W].

    A flag for each value of a hash tells nearly all others apart, so that few have to be searched for.
    """
    count = np.zeros(len(wanted), np.int64)
    if not len(wanted):
        return count
    bits = int(8 * len(wanted)).bit_length()
    maybe = np.zeros(1 << bits, bool)
    maybe[_hash(wanted, bits)] = True
    for pairs in parts:
        pairs = pairs[maybe[_hash(pairs, bits)]]
        at = np.minimum(np.searchsorted(wanted, pairs), len(wanted) - 1)
        np.add.at(count, at[wanted[at] == pairs], 1)
    return count


def _hash(pairs: NDArray[np.int64], bits: int) -> NDArray[np.uint64]:
    """Fibonacci hashing (Knuth, The Art of Computer Programming, vol. 3, section 6.4)."""
    return (pairs.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits)
