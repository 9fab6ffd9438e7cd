"""Scores by chance: what any metric is without a model."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse

from llm4rec_jax.baselines.core import BASELINES, ScoreRows
from llm4rec_jax.data.splits.split import Split


@BASELINES.register("random")
def random(split: Split, texts: Sequence[str] | None = None, seed: int = 0) -> ScoreRows:
    """Independent normal scores, a function of seed and user only. Arguments as for every baseline."""
    num_items = split.dataset.num_items

    def rows(history: scipy.sparse.csr_array, users: np.ndarray) -> np.ndarray:
        return np.stack([np.random.default_rng((seed, int(user))).standard_normal(num_items) for user in users])

    return ScoreRows(rows, num_items)
