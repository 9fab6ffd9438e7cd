"""That nothing which is to be predicted can be read: asserted in every run, on the arrays that it reads."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.data.ondisk.mmap import chunks
from llm4rec_jax.data.splits.split import Sequences

# So few that what is computed of them stays in a processor's cache.
_AT_ONCE = 1 << 18

Columns = tuple[NDArray[np.integer], NDArray[np.integer]]


class Leak(DataError):
    """A history that holds what is to be predicted from it."""


def assert_no_leakage(dataset: Dataset, history: Sequences, targets: Iterable[Sequences], what: str) -> None:
    """Compares what is read with what is predicted, pair by pair of user and item.

    An item that a user returns to may stand in both, but no more often than the data has it: a history that took a
    target in has one too many. `Split` itself checks that every row has one role, and this, what was made of the rows.
    Time and memory grow as the interactions do: some ten nanoseconds each, and a few bytes.

    Args:
        dataset: all interactions.
        history, targets: users in the order of the user table.
        what: what the history is, for the message.

    Raises:
        Leak: naming the first user and item.
    """
    size = (dataset.num_users, dataset.num_items)
    pairs = [_pair(*part, dataset.num_items) for each in targets for part in _entries(each)]
    wanted, predicted = np.unique(np.concatenate([np.zeros(0, np.int64), *pairs]), return_counts=True)
    read = _times(wanted, _entries(history), *size)
    # Of few pairs, if of any, it is to be counted how often the data has them.
    twice = np.flatnonzero(read)
    if not twice.size:
        return
    wanted, data = wanted[twice], dataset.interactions
    there = _times(wanted, ((data.user[part], data.item[part]) for part in chunks(len(data), _AT_ONCE)), *size)
    leaked = np.flatnonzero((read + predicted)[twice] > there)
    if leaked.size:
        user, item = divmod(int(wanted[leaked[0]]), dataset.num_items)
        raise Leak(
            f"{what} of user {dataset.users['user_id'][user]!r} holds item {dataset.items['item_id'][item]!r}, which "
            f"is to be predicted from it ({leaked.size} such pairs): figures would be too good. Mend the split"
        )


def assert_within_users(sequences: Sequences, user: np.ndarray, start: np.ndarray, stop: np.ndarray) -> None:
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


def _entries(sequences: Sequences) -> Iterator[Columns]:
    """User and item of all entries, so many at a time."""
    for part in chunks(len(sequences.items), _AT_ONCE):
        first, last = np.searchsorted(sequences.offsets, (part.start, part.stop - 1), side="right") - 1
        lengths = np.diff(np.clip(sequences.offsets[first : last + 2], part.start, part.stop))
        yield np.repeat(np.arange(first, last + 1), lengths), sequences.items[part]


def _times(wanted: NDArray[np.int64], parts: Iterable[Columns], num_users: int, num_items: int) -> NDArray[np.int64]:
    """How often each of the wanted pairs, ascending, occurs in all parts together [W].

    Each user has 64 flags, of which an item sets one: most pairs that are not wanted meet none, and are not searched
    for. (A Bloom filter, Bloom 1970, of one function.)
    """
    count = np.zeros(len(wanted), np.int64)
    if not len(wanted):
        return count
    flags = np.zeros(num_users, np.uint64)
    np.bitwise_or.at(flags, wanted // num_items, _flag(wanted % num_items))
    for user, item in parts:
        some = np.flatnonzero(flags[user] & _flag(item))
        pairs = _pair(user[some], item[some], num_items)
        at = np.minimum(np.searchsorted(wanted, pairs), len(wanted) - 1)
        np.add.at(count, at[wanted[at] == pairs], 1)
    return count


def _flag(item: NDArray[np.integer]) -> NDArray[np.uint64]:
    return np.uint64(1) << (item & 63).astype(np.uint64)
