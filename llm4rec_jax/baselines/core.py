"""The registry of closed-form baselines, and a scorer made of rows of scores."""

import itertools
from collections.abc import Callable

import numpy as np
import scipy.sparse

from llm4rec_jax.data.splits.split import Sequences, Split
from llm4rec_jax.inference.scorer import RowScorer, Scorer
from llm4rec_jax.registry import Registry

BASELINES: Registry[Callable[..., Scorer]] = Registry("baseline")


def interaction_matrix(sequences: Sequences, num_items: int) -> scipy.sparse.csr_array:
    """Returns the matrix of users and their items: float64 [U, I] of zeros and ones, repetitions counted once."""
    users = len(sequences.offsets) - 1
    row = np.repeat(np.arange(users), np.diff(sequences.offsets))
    matrix = scipy.sparse.csr_array((np.ones(len(row)), (row, sequences.items)), shape=(users, num_items))
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def training_matrix(split: Split) -> scipy.sparse.csr_array:
    """The interaction matrix [U, I] of the training part."""
    return interaction_matrix(split.training()[0], split.dataset.num_items)


def keep_largest(matrix: scipy.sparse.csr_array, k: int) -> scipy.sparse.csr_array:
    """The k largest entries of each row; of equal ones at the border, those in the first columns.

    Raises:
      ValueError: k is not positive.
    """
    if k < 1:
        raise ValueError(f"k is {k}, must be at least 1 neighbour")
    matrix.sort_indices()
    values, columns = np.asarray(matrix.data), np.asarray(matrix.indices)
    keep = np.zeros(len(values), bool)
    for start, stop in itertools.pairwise(np.asarray(matrix.indptr)):
        order = np.argsort(np.negative(values[start:stop]), kind="stable")[:k]
        keep[start + order] = True
    row = np.repeat(np.arange(len(matrix.indptr) - 1), np.diff(matrix.indptr))[keep]
    return scipy.sparse.csr_array((values[keep], (row, columns[keep])), shape=matrix.shape)


class ScoreRows(RowScorer):
    """A scorer whose embedding of a user is the row of its scores.

    Args:
      rows: (history of some users as an interaction matrix [n, I], user rows [n]) to scores [n, I].
      num_items: I.
    """

    def __init__(self, rows: Callable[[scipy.sparse.csr_array, np.ndarray], np.ndarray], num_items: int) -> None:
        self._rows, self.num_items = rows, num_items
        self._read: tuple[Sequences, scipy.sparse.csr_array] | None = None

    def user_embeddings(self, item_embeddings: np.ndarray, history: Sequences, users: np.ndarray) -> np.ndarray:
        if self._read is None or self._read[0] is not history:
            self._read = (history, interaction_matrix(history, self.num_items))
        return np.asarray(self._rows(self._read[1][users], users), np.float32)
