"""Leakage checks: verify on the actual input arrays that no held-out target appears in a user's history."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.data.ondisk.mmap import chunks
from llm4rec_jax.data.splits.split import Sequences

# Number of entries whose intermediate results stay in a processor's cache.
_AT_ONCE = 1 << 18

Columns = tuple[NDArray[np.integer], NDArray[np.integer]]


class Leak(DataError):
    """Raised for a history that holds a target which is to be predicted from it."""


def assert_no_leakage(dataset: Dataset, history: Sequences, targets: Iterable[Sequences], what: str) -> None:
    """Raises `Leak` if a history holds a held-out target, comparing pairs of user and item.

    An item that a user returns to may stand in both, but no more often than in the data: a history that took a target
    in has one too many. `Split` checks that every row has one role; this checks the arrays made from the rows. It takes
    some ten nanoseconds and a few bytes an interaction.

    Args:
        dataset: all interactions.
        history: sequences that are read, users in the order of the user table.
        targets: sequences that are predicted.
        what: name of the history in the message, such as "the test history".

    Raises:
        Leak: if a target is in a history; the message names the first user and item.

    Example:
        >>> import polars as pl
        >>> from llm4rec_jax.data.interactions import Interactions
        >>> data = Interactions(np.zeros(2, np.int32), np.array([0, 1], np.int32))
        >>> dataset = Dataset("toy", data, pl.DataFrame({"item_id": ["a", "b"]}), pl.DataFrame({"user_id": ["u"]}))
        >>> offsets = np.array([0, 1])
        >>> history, target = (Sequences(offsets, np.array([i], np.int32), None, None) for i in (0, 1))
        >>> assert_no_leakage(dataset, history, [target], "the test history")
        >>> assert_no_leakage(dataset, target, [target], "the test history")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        llm4rec_jax.data.splits.leakage.Leak: the test history of user 'u' holds item 'b', ...
    """
    size = (dataset.num_users, dataset.num_items)
    pairs = [_pair(*part, dataset.num_items) for each in targets for part in _entries(each)]
    wanted, predicted = np.unique(np.concatenate([np.zeros(0, np.int64), *pairs]), return_counts=True)
    read = _times(wanted, _entries(history), *size)
    # Only these pairs need to be counted in the data.
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
    """Raises `Leak` unless every example [E] reads entries of one user, from `start`, before its target at `stop`.

    Raises:
        Leak: if one does not; the message names the first.
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
    """Yields user and item of all entries in chunks."""
    for part in chunks(len(sequences.items), _AT_ONCE):
        first, last = np.searchsorted(sequences.offsets, (part.start, part.stop - 1), side="right") - 1
        lengths = np.diff(np.clip(sequences.offsets[first : last + 2], part.start, part.stop))
        yield np.repeat(np.arange(first, last + 1), lengths), sequences.items[part]


def _times(wanted: NDArray[np.int64], parts: Iterable[Columns], num_users: int, num_items: int) -> NDArray[np.int64]:
    """Counts how often each of the wanted pairs [W], ascending, occurs in all parts together.

    Each user has 64 flags, of which an item sets one. Most pairs that are not wanted meet no flag and are not searched
    for: a Bloom filter (Bloom 1970) of one hash function.
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
