"""Packing of short texts into rows, so that little of a batch is padding."""

from typing import NamedTuple

import numpy as np

from llm4rec_jax.data.batching.buckets import ANY, text_bucket
from llm4rec_jax.data.features.tokens import Tokens

ROW = 64
"""Number of columns of rows that hold texts which are shorter."""


class Packing(NamedTuple):
    """Places of n texts in rows.

    Attributes:
      row: Row of each text, [n].
      start: Its first column, [n].
      number: Its number among the texts of its row, from 1 on, [n].
      length: Number of columns L.
    """

    row: np.ndarray
    start: np.ndarray
    number: np.ndarray
    length: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.row.max(initial=-1)) + 1

    @property
    def most(self) -> int:
        """Largest number of texts in a row."""
        return int(self.number.max(initial=0))


def row_length(lengths: np.ndarray, most: int = ANY) -> int:
    """Returns the number of columns of rows for texts of these lengths.

    Args:
      lengths: Number of tokens of each text, [n].
      most: Number of positions of the encoder. No row is longer.

    Example:
      >>> row_length(np.array([3, 12])), row_length(np.array([3, 12]), most=32), row_length(np.array([3, 130]))
      (64, 32, 160)
    """
    return text_bucket(max(int(lengths.max(initial=1)), min(ROW, most)), most)


def pack(lengths: np.ndarray, length: int) -> Packing:
    """Packs texts into rows: the longest first, each into the fullest row that has room for it (Krell et al. 2021).

    Args:
      lengths: Number of tokens of each text, [n].
      length: Number of columns of a row, at least that of the longest text.

    Example:
      >>> places = pack(np.array([3, 5, 2, 4]), 8)
      >>> places.row.tolist(), places.start.tolist(), places.number.tolist()
      ([0, 0, 1, 1], [5, 0, 4, 0], [2, 1, 2, 1])

    References:
      Krell et al., Efficient Sequence Packing without Cross-contamination, 2021 (https://arxiv.org/abs/2107.02027).
    """
    # A text without tokens takes a column, so that a row does not hold any number of them.
    sizes = np.maximum(lengths, 1)
    if (longest := int(sizes.max(initial=0))) > length:
        raise ValueError(f"a text of {longest} tokens does not fit into a row of {length}: give longer rows")
    row, start, number = (np.zeros(len(sizes), np.int32) for _ in range(3))
    # Open rows by the number of free columns. Bit s of `free` says that there are some with s of them.
    by_space: list[list[int]] = [[] for _ in range(length + 1)]
    free, held = 0, []
    for text in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[text])
        if fitting := free >> size:
            space = size + (fitting & -fitting).bit_length() - 1
            where = by_space[space].pop()
            free ^= 0 if by_space[space] else 1 << space
        else:
            space, where = length, len(held)
            held.append(0)
        held[where] += 1
        row[text], start[text], number[text] = where, length - space, held[where]
        by_space[space - size].append(where)
        free |= 1 << (space - size)
    return Packing(row, start, number, length)


def packed_rows(tokens: Tokens, packing: Packing) -> tuple[np.ndarray, np.ndarray]:
    """Lays texts out in rows.

    Returns:
      Token ids and numbers of texts, int32 [R, L], both 0 where there is no token.

    Example:
      >>> tokens = Tokens(np.array([[7, 8, 9], [5, 0, 0]], np.int32), np.array([3, 1], np.int32))
      >>> ids, numbers = packed_rows(tokens, pack(tokens.lengths, 5))
      >>> ids.tolist(), numbers.tolist()
      ([[7, 8, 9, 5, 0]], [[1, 1, 1, 2, 0]])
    """
    ids, numbers = (np.zeros((packing.rows, packing.length), np.int32) for _ in range(2))
    text, column = np.nonzero(np.arange(tokens.ids.shape[1]) < tokens.lengths[:, None])
    at = packing.row[text], packing.start[text] + column
    ids[at], numbers[at] = tokens.ids[text, column], packing.number[text]
    return ids, numbers
