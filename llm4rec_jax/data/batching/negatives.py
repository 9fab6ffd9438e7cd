"""Negatives drawn from what a user has not interacted with, exactly and without rejection."""

from typing import Literal

import numpy as np

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.splits.split import Sequences

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

        self._seen = seen
        # Only who has as many interactions as there are items can have all of them.
        many = np.flatnonzero(np.diff(seen.offsets) >= known.sum())
        if nothing := [user for user in many if self._left(self._own(int(user))) == 0]:
            raise DataError(
                f"user row {nothing[0]} (of {len(nothing)} such users) has all {known.sum()} known items in training: "
                "no negative exists; leave such users out, or use a loss without sampled negatives"
            )

    def _own(self, user: int) -> np.ndarray:
        """The distinct items of a user, ascending."""
        return np.unique(self._seen.of(user))

    def _left(self, own: np.ndarray) -> int:
        """The mass of all items but these."""
        return int(self._cumulative[-1] - self._weights[own].sum())

    def __call__(
        self, rng: np.random.Generator, users: np.ndarray, count: int, share: slice = slice(None)
    ) -> np.ndarray:
        """Draws with replacement: users [B] to items [B, count], of which the rows in `share` are given.

        Those are the same whatever the share is.
        """
        own = [self._own(user) for user in users]
        draws = rng.integers(0, np.array([self._left(items) for items in own])[:, None], (len(users), count))[share]
        for row, items in enumerate(own[share]):
            # For each own item: where its mass begins once the user's earlier own items are cut out.
            mass = np.concatenate([[0], np.cumsum(self._weights[items])])
            draws[row] += mass[np.searchsorted(self._cumulative[items] - mass[:-1], draws[row], side="right")]
        return (np.searchsorted(self._cumulative, draws, side="right") - 1).astype(np.int32)
