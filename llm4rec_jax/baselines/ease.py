"""EASE: an item-item regression in closed form."""

from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.sparse

from llm4rec_jax.baselines.core import BASELINES, ScoreRows, training_matrix
from llm4rec_jax.data.splits.split import Split


@BASELINES.register("ease")
def ease(split: Split, texts: Sequence[str] | None = None, seed: int = 0, l2: float = 250.0) -> ScoreRows:
    """score = H B, with B the ridge regression of every item on all others (Steck 2019, arXiv 1905.03375, equation 8).

    B = I - P / diag(P), P = (XᵀX + l2 · I)⁻¹, with a diagonal of zero; X the training matrix, H the history. Takes
    8 · I² bytes twice and about I³ operations.

    Args:
      l2: λ.

    Raises:
      ValueError: l2 is not positive.
    """
    if not l2 > 0:
        raise ValueError(f"l2 is {l2}, must be positive")
    matrix = training_matrix(split)
    gram = (matrix.T @ matrix).toarray()
    gram[np.diag_indices_from(gram)] += l2
    factor = scipy.linalg.cho_factor(gram, overwrite_a=True, check_finite=False)
    inverse = scipy.linalg.cho_solve(factor, np.eye(len(gram)), overwrite_b=True, check_finite=False)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    weights = weights.astype(np.float32)

    def rows(history: scipy.sparse.csr_array, users: np.ndarray) -> np.ndarray:
        return history.astype(np.float32) @ weights

    return ScoreRows(rows, split.dataset.num_items)
