"""Residual k-means: each level clusters what the levels before have left of the vectors."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from llm4rec_jax.semantic_ids.balance import balanced_assignment

BALANCED_ROUNDS = 10
"""Number of times that balanced clusters are assigned and their centres moved."""


def cluster(
    vectors: NDArray[np.floating], codes: int, *, seed: int = 0, balanced: bool = False
) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
    """Clusters vectors by k-means.

    Args:
      vectors: [n, W].
      codes: Number of clusters K.
      seed: Seed of the start.
      balanced: Whether no cluster may have more than ⌈n / K⌉ vectors.

    Returns:
      Clusters [n], and centres [K, W].
    """
    # Its stubs know some of its arguments and results wrongly.
    fitted: Any = KMeans(codes, n_init=1, random_state=seed)  # pyright: ignore[reportArgumentType]
    fitted.fit(vectors)
    centres, labels = fitted.cluster_centers_, fitted.labels_
    for _ in range(BALANCED_ROUNDS if balanced else 0):
        labels = balanced_assignment(squared_distances(vectors, centres))
        counts = np.bincount(labels, minlength=codes)
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, vectors)
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    return labels.astype(np.int32), centres


def squared_distances(vectors: NDArray[np.floating], centres: NDArray[np.floating]) -> NDArray[np.floating]:
    """Returns the squared distances [n, K] of vectors [n, W] and centres [K, W]."""
    squares = np.square(vectors).sum(axis=1)[:, None] + np.square(centres).sum(axis=1)
    return np.maximum(squares - 2.0 * (vectors @ centres.T), 0.0)


def residual_clusters(
    vectors: NDArray[np.floating], levels: int, codes: int, *, seed: int = 0, balanced: bool = False
) -> tuple[NDArray[np.int32], NDArray[np.floating], NDArray[np.floating]]:
    """Clusters vectors, then the differences to their centres, and so on.

    Args:
      vectors: [n, W].
      levels: Number of levels L.
      codes: Number of clusters a level K.
      seed, balanced: See `cluster`.

    Returns:
      Codes [n, L], centres [L, K, W], and the squared length of the differences that each level leaves [L].
    """
    found, tables, inertias = [], [], []
    for level in range(levels):
        labels, centres = cluster(vectors, codes, seed=seed + level, balanced=balanced)
        vectors = vectors - centres[labels]
        found.append(labels)
        tables.append(centres)
        inertias.append(np.square(vectors).sum())
    return np.column_stack(found), np.stack(tables), np.array(inertias)
