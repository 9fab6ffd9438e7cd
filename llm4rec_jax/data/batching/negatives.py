"""Negative items, drawn exactly and without rejection from those that a user has not interacted with."""

from typing import Literal

import numpy as np

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.splits.split import Sequences

Negatives = Literal["sampled", "in_batch", "mixed", "catalogue", "none"]
"""Items that a loss compares a target with: drawn ones, the batch's other targets, these with items
drawn once for the batch, all items, or no items."""

# Total of the integer weights. Their sums are exact, so that rounding cannot let a draw fall on an item of the user.
_TOTAL = 1 << 50


class NegativeSampler:
    """Draws items in proportion to popularity^alpha among the known items that a user's training data lacks.

    A user's items are cut out of the cumulative distribution, so that a draw is exact and takes O(log I + log n)
    whether the user has seen one item or all but one.

    Args:
      seen: training items of each user, in the order of the user table.
      known: bool [I], the items that may be drawn.
      popularity: number of training interactions of each item, [I]; read only when alpha is not 0.
      alpha: 0 draws uniformly, 1 in proportion to popularity.

    Raises:
      DataError: on construction, if a user has all known items.

    Example:
      >>> seen = Sequences(np.array([0, 2]), np.array([0, 2], np.int32), None, None)
      >>> sampler = NegativeSampler(seen, np.ones(4, bool), np.ones(4))
      >>> sorted(set(sampler(np.random.default_rng(0), np.array([0]), 50)[0].tolist()))
      [1, 3]
    """

    def __init__(self, seen: Sequences, known: np.ndarray, popularity: np.ndarray, alpha: float = 0.0) -> None:
        weights = known.astype(np.float64)
        if alpha:
            # An item without interactions keeps the weight of one with half an interaction: it stays drawable.
            weights *= np.maximum(popularity, 0.5) ** alpha
        self._weights = np.where(known, np.maximum(np.round(weights / weights.sum() * _TOTAL), 1), 0).astype(np.int64)
        self._cumulative = np.concatenate([[0], np.cumsum(self._weights)])
        # Log probability of drawing each item, before a user's own items are cut out, [I].
        self.log_q = np.log(np.maximum(self._weights, 1) / self._cumulative[-1]).astype(np.float32)

        self._seen = seen
        # Only users with as many interactions as there are items can have all of them.
        many = np.flatnonzero(np.diff(seen.offsets) >= known.sum())
        if exhausted := [user for user in many if self._mass_without(self._items_of(int(user))) == 0]:
            raise DataError(
                f"user row {exhausted[0]} (of {len(exhausted)} such users) has all {known.sum()} known items in "
                "training: no negative exists; leave such users out, or use a loss without sampled negatives"
            )

    def _items_of(self, user: int) -> np.ndarray:
        """Returns the distinct items of a user, ascending."""
        return np.unique(self._seen.of(user))

    def _mass_without(self, items: np.ndarray) -> int:
        """Returns the mass of all items but these."""
        return int(self._cumulative[-1] - self._weights[items].sum())

    def __call__(
        self, rng: np.random.Generator, users: np.ndarray, count: int, rows: slice = slice(None)
    ) -> np.ndarray:
        """Draws with replacement.

        Four items of mass 10 and a user who has items 0 and 2: draws lie in [0, 20). Item 0 begins at 0 - 0 = 0 and
        item 2 at 20 - 10 = 10 once the user's earlier items are cut out. A draw of 3 is past one of the two, gains 10
        and falls on item 1; a draw of 13 is past both, gains 20 and falls on item 3.

        Args:
          rng: generator of the draws.
          users: rows of the user table, [B].
          count: number of items a user.
          rows: the users whose draws are returned; the draws do not depend on it.

        Returns:
          int32 rows of the item table, [B, count], of the selected users.
        """
        seen = [self._items_of(user) for user in users]
        draws = rng.integers(0, np.array([self._mass_without(items) for items in seen])[:, None], (len(users), count))
        draws = draws[rows]
        for row, items in enumerate(seen[rows]):
            mass_before = np.concatenate([[0], np.cumsum(self._weights[items])])
            begins = self._cumulative[items] - mass_before[:-1]
            draws[row] += mass_before[np.searchsorted(begins, draws[row], side="right")]
        return (np.searchsorted(self._cumulative, draws, side="right") - 1).astype(np.int32)
