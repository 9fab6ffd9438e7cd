"""The ids of a catalogue, and items that share one."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """Ids of I items, of L codes each.

    Attributes:
      codes: int32 [I, L]; the code of level l is below sizes[l].
      sizes: Number of codes of each level.

    Raises:
      ValueError: A code is outside of its level, or shapes do not fit.
    """

    codes: NDArray[np.int32]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.shape[1] != len(self.sizes) or not self.sizes:
            raise ValueError(f"codes have the shape {self.codes.shape}, must be [items, {len(self.sizes)} levels]")
        wrong = np.argwhere((self.codes < 0) | (self.codes >= np.array(self.sizes)))
        if len(wrong):
            item, level = wrong[0]
            raise ValueError(
                f"item {item} has code {self.codes[item, level]} at level {level}, must be 0 to {self.sizes[level] - 1}"
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the codes in the order of the items."""
        return hashlib.sha256(f"{self.codes.shape};".encode() + self.codes.astype("<i4").tobytes()).hexdigest()


class Collisions(NamedTuple):
    """Counts of items that share an id.

    Attributes:
      items: Number of items.
      ids: Number of different ids.
      colliding: Number of items whose id another item has too.
      largest: Number of items of the id that most items share.
    """

    items: int
    ids: int
    colliding: int
    largest: int


def collisions(ids: SemanticIds) -> Collisions:
    """Counts the items that share an id.

    Example:
      >>> collisions(SemanticIds(np.array([[0, 1], [2, 0], [0, 1]], np.int32), (3, 2)))
      Collisions(items=3, ids=2, colliding=2, largest=2)
    """
    counts = np.unique(ids.codes, axis=0, return_counts=True)[1]
    return Collisions(len(ids.codes), len(counts), int(counts[counts > 1].sum()), int(counts.max(initial=0)))


def with_extra_digit(ids: SemanticIds) -> SemanticIds:
    """Adds a level that numbers the items of an id, in the order of the items; ids without collisions stay as they are.

    Example:
      >>> with_extra_digit(SemanticIds(np.array([[0, 1], [2, 0], [0, 1]], np.int32), (3, 2))).codes.tolist()
      [[0, 1, 0], [2, 0, 0], [0, 1, 1]]

    References:
      Rajput et al. 2023 (TIGER), arXiv 2305.05065, section 3.1.
    """
    _, group, counts = np.unique(ids.codes, axis=0, return_inverse=True, return_counts=True)
    if counts.max(initial=1) == 1:
        return ids
    # Groups [1, 0, 1] in the order [1, 0, 2] begin at 0 and 1: the digits are 0; 0, 1.
    order = np.argsort(group, kind="stable")
    digit = np.empty(len(group), np.int32)
    digit[order] = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    return SemanticIds(np.column_stack([ids.codes, digit]), (*ids.sizes, int(counts.max())))
