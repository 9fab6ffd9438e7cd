"""The number of interactions: the same list for everybody."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from llm4rec_jax.baselines.core import BASELINES
from llm4rec_jax.data.splits.split import Sequences, Split
from llm4rec_jax.inference.scorer import Scorer


def _times(params: None, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
    return user_embeddings @ item_embeddings.T


class Popularity(Scorer):
    """Scores an item by its count, a `Scorer`. Scores are exact in float32 up to 2²⁴.

    Args:
      split: whose interactions are counted.
      counts: "training", or "all": validation and test interactions too. The latter lets the targets leak into the
        scores; it is there because published tables have it.
      ties: "shared": items with one count have one score, and evaluation counts ties against the model. "first": of
        those, the one that stands first in the item table is first, as where an implementation sorts.
    """

    def __init__(
        self,
        split: Split,
        counts: Literal["training", "all"] = "training",
        ties: Literal["shared", "first"] = "shared",
    ) -> None:
        if counts not in ("training", "all"):
            raise ValueError(f"counts must be 'training' or 'all', not {counts!r}")
        if ties not in ("shared", "first"):
            raise ValueError(f"ties must be 'shared' or 'first', not {ties!r}")
        items = split.training()[0].items if counts == "training" else split.dataset.interactions.item
        counted = np.bincount(items, minlength=split.dataset.num_items)
        if ties == "first":
            # The place in the list, counted from its end.
            order = np.argsort(np.negative(counted), kind="stable")
            counted[order] = np.arange(len(counted), 0, -1)
        self._scores = counted

    def item_embeddings(self) -> np.ndarray:
        return self._scores[:, None].astype(np.float32)

    def user_embeddings(self, item_embeddings: np.ndarray, history: Sequences, users: np.ndarray) -> np.ndarray:
        return np.ones((len(users), 1), np.float32)

    @property
    def head(self) -> tuple[Callable[[Any, jax.Array, jax.Array], jax.Array], Any]:
        return _times, None


@BASELINES.register("popularity")
def popularity(
    split: Split,
    texts: Sequence[str] | None = None,
    seed: int = 0,
    counts: Literal["training", "all"] = "training",
    ties: Literal["shared", "first"] = "shared",
) -> Popularity:
    """`Popularity`. Arguments as for every baseline; `counts` and `ties`: see there."""
    return Popularity(split, counts, ties)
