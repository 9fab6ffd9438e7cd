"""Centring and whitening of a catalogue's text vectors.

Pooled vectors of a language model share a large mean and a few directions of large variance, which say little of what
tells texts apart (Mu & Viswanath 2018, arXiv 1702.01417; Su et al. 2021, arXiv 2103.15316).
"""

import numpy as np


def center(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [n, W] without their mean.

    Example:
        >>> center(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    return (vectors - vectors.mean(0, dtype=np.float64)).astype(vectors.dtype)


def whiten(vectors: np.ndarray, components: int) -> np.ndarray:
    """Returns centred vectors [n, W] that vary alike in their first principal components and in no other direction.

    The result is turned back to the axes of the vectors, so it is as wide as they are.

    Args:
        vectors: The vectors of a catalogue.
        components: Number of principal components that are kept.

    Raises:
        ValueError: the vectors vary in fewer directions.

    Example:
        >>> wide = np.array([[9.0, 1.0], [9.0, -1.0], [-9.0, 1.0], [-9.0, -1.0]])
        >>> whiten(wide, 2).round(3).tolist()
        [[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]
    """
    centred = vectors - vectors.mean(0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(vectors))
    # Ascending: the last ones are the largest.
    varying = int((variances > 1e-10 * variances[-1]).sum())
    if components > varying:
        raise ValueError(f"{len(vectors)} vectors vary in {varying} directions: whiten to that many components at most")
    kept = directions[:, -components:]
    return (centred @ (kept / np.sqrt(variances[-components:])) @ kept.T).astype(vectors.dtype)
