"""The number of training interactions: the same list for everybody."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.data.split import Sequences, Split


def _times(params: None, profiles: jax.Array, contexts: jax.Array) -> jax.Array:
    return profiles @ contexts.T


class Popularity:
    """Scores an item by its count in training, a `scoring.Scorer`. Counts are exact in float32 up to 2²⁴.

    Args:
      split: whose training interactions are counted.
    """

    def __init__(self, split: Split) -> None:
        self._counts = np.bincount(split.training()[0].items, minlength=split.dataset.num_items)

    def contexts(self) -> jax.Array:
        return jnp.asarray(self._counts[:, None], jnp.float32)

    def profiles(self, contexts: jax.Array, history: Sequences, users: np.ndarray) -> jax.Array:
        return jnp.ones((len(users), 1))

    @property
    def head(self) -> tuple[Callable[[Any, jax.Array, jax.Array], jax.Array], Any]:
        return _times, None
