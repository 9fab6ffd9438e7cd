"""Collaborative filtering by neighbours, with cosine similarities of the training matrix."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse

from llm4rec_jax.baselines.core import BASELINES, ScoreRows, keep_largest, training_matrix
from llm4rec_jax.data.splits.split import Split


@BASELINES.register("item_knn")
def item_knn(
    split: Split, texts: Sequence[str] | None = None, seed: int = 0, k: int = 100, shrink: float = 0.0
) -> ScoreRows:
    """score(u, i) = Σ sim(i, j) over the items j of u's history among i's k nearest (Deshpande & Karypis 2004).

    sim(i, j) = |U_i ∩ U_j| / (√|U_i| √|U_j| + shrink), U_i the users that have i in training.

    Args:
      k: neighbours of an item.
      shrink: added to the denominator: similarities that few users bear out count less.
    """
    if shrink < 0:
        raise ValueError(f"shrink is {shrink}, must not be negative")
    matrix = training_matrix(split)
    together = (matrix.T @ matrix).tocoo()
    norm = np.sqrt(np.asarray(matrix.sum(axis=0)).ravel())
    row, column = together.coords
    other = row != column
    row, column = row[other], column[other]
    similarity = together.data[other] / (norm[row] * norm[column] + shrink)
    size = (split.dataset.num_items, split.dataset.num_items)
    nearest = keep_largest(scipy.sparse.csr_array((similarity, (row, column)), shape=size), k)
    to_items = nearest.T.tocsr()

    def rows(history: scipy.sparse.csr_array, users: np.ndarray) -> np.ndarray:
        return (history @ to_items).toarray()

    return ScoreRows(rows, split.dataset.num_items)


@BASELINES.register("user_knn")
def user_knn(
    split: Split, texts: Sequence[str] | None = None, seed: int = 0, k: int = 100, shrink: float = 0.0
) -> ScoreRows:
    """score(u, i) = Σ sim(u, v) over u's k nearest users v that have i in training (Resnick et al. 1994, binary).

    sim(u, v) = |H_u ∩ I_v| / (√|H_u| √|I_v| + shrink): H_u is u's history, I_v what v has in training. Nobody is their
    own neighbour.

    Args:
      k: neighbours of a user.
      shrink: added to the denominator.
    """
    if shrink < 0:
        raise ValueError(f"shrink is {shrink}, must not be negative")
    matrix = training_matrix(split)
    norm = np.sqrt(np.asarray(matrix.sum(axis=1)).ravel())

    def rows(history: scipy.sparse.csr_array, users: np.ndarray) -> np.ndarray:
        together = (history @ matrix.T).tocoo()
        row, column = together.coords
        other = users[row] != column
        row, column = row[other], column[other]
        own = np.sqrt(np.asarray(history.sum(axis=1)).ravel())
        similarity = together.data[other] / (own[row] * norm[column] + shrink)
        nearest = keep_largest(scipy.sparse.csr_array((similarity, (row, column)), shape=together.shape), k)
        return scipy.sparse.csr_array(nearest @ matrix).toarray()

    return ScoreRows(rows, split.dataset.num_items)
