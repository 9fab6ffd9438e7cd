"""Quantizers by name: vectors of items to codes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.registry import Registry
from llm4rec_jax.semantic_ids.codes import SemanticIds
from llm4rec_jax.semantic_ids.kmeans import residual_clusters
from llm4rec_jax.semantic_ids.rq_vae import train_rq_vae


class Quantized(NamedTuple):
    """Ids, and the share of the vectors' variance that is left unexplained after each level."""

    ids: SemanticIds
    left: tuple[float, ...]


QUANTIZERS: Registry[Callable[..., Quantized]] = Registry("quantizer")
"""Each takes vectors [I, W], `levels`, `codes` and `seed`, and may have options of its own."""


def _checked(vectors: NDArray[np.floating], levels: int, codes: int) -> NDArray[np.floating]:
    """Returns the vectors without their mean."""
    if levels < 1 or not 1 <= codes <= len(vectors):
        raise ValueError(
            f"levels={levels} and codes={codes} for {len(vectors)} items: give at least one level, and from one code "
            "to one an item"
        )
    if not np.isfinite(vectors).all():
        raise ValueError("the vectors of items are NaN or infinite: look at the run that they come from")
    return vectors - vectors.mean(axis=0)


@QUANTIZERS.register("residual_kmeans")
def residual_kmeans(
    vectors: NDArray[np.floating], *, levels: int = 3, codes: int = 256, seed: int = 0, balanced: bool = False
) -> Quantized:
    """Clusters by k-means, level by level (RK-means; Ju et al. 2025 (GRID), arXiv 2507.22224)."""
    centred = _checked(vectors, levels, codes)
    found, _, inertias = residual_clusters(centred, levels, codes, seed=seed, balanced=balanced)
    return Quantized(SemanticIds(found, (codes,) * levels), tuple((inertias / np.square(centred).sum()).tolist()))


@QUANTIZERS.register("constrained_kmeans")
def constrained_kmeans(vectors: NDArray[np.floating], *, levels: int = 3, codes: int = 256, seed: int = 0) -> Quantized:
    """Clusters level by level with all clusters of a level equally large, up to one."""
    return residual_kmeans(vectors, levels=levels, codes=codes, seed=seed, balanced=True)


@QUANTIZERS.register("rq_vae")
def rq_vae(
    vectors: NDArray[np.floating], *, levels: int = 3, codes: int = 256, seed: int = 0, **options: float
) -> Quantized:
    """Trains a residual-quantized autoencoder; for its options see `rq_vae.RqVaeOptions`."""
    found, left = train_rq_vae(_checked(vectors, levels, codes), levels, codes, seed=seed, **options)
    return Quantized(SemanticIds(found, (codes,) * levels), left)
