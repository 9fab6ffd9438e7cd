"""Negatives drawn from what a user has not interacted with, exactly and without rejection."""

from typing import Literal

import numpy as np

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.split import Sequences

Negatives = Literal["sampled", "in_batch", "catalogue", "none"]
"""What a loss compares a target with: drawn items, the batch's other targets, every item, or nothing."""

# Weights become integers of about this total, so that sums are exact and no draw can fall on an own item by rounding.
_TOTAL = 1 << 50


class NegativeSampler:
    """Draws items in proportion to popularity^alpha among the known items that a user's training data lacks.

    The own items' probability mass is cut out of the cumulative distribution, so a draw takes O(log I + log n) whether
    a user has seen one item or all but one.

    Args:
      seen: what each user has in training, users in the order of the user table.
      known: [I] bool, the items that may be drawn.
      popularity: [I] counts in training; only read when alpha is not 0.
      alpha: 0 is uniform, 1 in proportion to popularity.

    Raises:
      DataError: a user to whom every known item belongs, found at construction.
    """

    def __init__(self, seen: Sequences, known: np.ndarray, popularity: np.ndarray, alpha: float = 0.0) -> None:
        weights = known.astype(np.float64)
        if alpha:
            # An item without interactions keeps the weight of one with half an interaction: it stays drawable.
            weights *= np.maximum(popularity, 0.5) ** alpha
        self._weights = np.where(known, np.maximum(np.round(weights / weights.sum() * _TOTAL), 1), 0).astype(np.int64)
        self._cumulative = np.concatenate([[0], np.cumsum(self._weights)])

        # The distinct own items of each user, ascending, as one flat array.
        users = np.repeat(np.arange(len(seen.offsets) - 1), np.diff(seen.offsets))
        own = np.unique(users * np.int64(len(known)) + seen.items)
        self._owner, self._own = np.divmod(own, len(known))
        self._offsets = np.searchsorted(self._owner, np.arange(len(seen.offsets)))
        # For each own item: where its mass begins once the user's earlier own items are cut out.
        mass = np.concatenate([[0], np.cumsum(self._weights[self._own])])
        before = mass[:-1] - mass[self._offsets[self._owner]]
        self._begins = self._cumulative[self._own] - before
        self._mass = mass
        self._left = self._cumulative[-1] - (mass[self._offsets[1:]] - mass[self._offsets[:-1]])
        if len(nothing := np.flatnonzero(self._left == 0)):
            raise DataError(
                f"user row {nothing[0]} (of {len(nothing)} such users) has all {known.sum()} known items in training: "
                "no negative exists; leave such users out, or use a loss without sampled negatives"
            )

    def __call__(
        self, rng: np.random.Generator, users: np.ndarray, count: int, share: slice = slice(None)
    ) -> np.ndarray:
        """Draws with replacement: users [B] to items [B, count], of which the rows in `share` are given.

        Those are the same whatever the share is.
        """
        draws = rng.integers(0, self._left[users][:, None], (len(users), count))[share]
        for row, user in enumerate(users[share]):
            start, stop = self._offsets[user], self._offsets[user + 1]
            passed = np.searchsorted(self._begins[start:stop], draws[row], side="right")
            draws[row] += self._mass[start + passed] - self._mass[start]
        return (np.searchsorted(self._cumulative, draws, side="right") - 1).astype(np.int32)
