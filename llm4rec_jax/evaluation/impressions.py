"""Metrics of impressions: lists of shown items of which a user has clicked some, as in MIND (Wu et al. 2020, ACL)."""

import numpy as np
from numpy.typing import ArrayLike

from llm4rec_jax.evaluation.metrics import grouped_auc


def impression_metrics(scores: ArrayLike, labels: ArrayLike, impressions: ArrayLike) -> dict[str, float]:
    """Returns AUC, MRR, nDCG@5 and nDCG@10, each computed within an impression and averaged over impressions.

    They are those of MIND's evaluation script: MRR is the mean of 1 / rank over the clicked items of an impression. An
    item that is clicked ranks below others with the same score. Impressions of one class only are left out and counted.

    Args:
      scores: Scores [n].
      labels: 1 for a click, else 0, [n].
      impressions: The impression that each row belongs to, [n].

    Raises:
      ValueError: No impression has both classes.

    Example:
      >>> figures = impression_metrics([0.9, 0.5, 0.1, 0.3, 0.2], [0, 1, 0, 1, 0], [7, 7, 7, 8, 8])
      >>> [round(figures[name], 3) for name in ("impression_auc", "mrr", "ndcg@5", "impressions")]
      [0.75, 0.75, 0.815, 2.0]
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    _, group = np.unique(np.asarray(impressions), return_inverse=True)
    auc, positives, negatives = grouped_auc(scores, labels, group)
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        raise ValueError(f"none of {both.size} impressions has clicked items and others: there is nothing to rank")
    order = np.lexsort((labels, -scores, group))
    group, labels = group[order], labels[order]
    rank = np.arange(len(group)) - np.searchsorted(group, group) + 1

    def mean(per_impression: np.ndarray) -> float:
        return float(per_impression[both].mean())

    clicked = np.maximum(positives, 1)
    figures = {"impression_auc": mean(auc), "mrr": mean(np.bincount(group, labels / rank) / clicked)}
    for k in (5, 10):
        gain = np.where(rank <= k, labels / np.log2(rank + 1), 0.0)
        best = np.cumsum(1 / np.log2(np.arange(2, k + 2)))[np.minimum(clicked, k).astype(int) - 1]
        figures[f"ndcg@{k}"] = mean(np.bincount(group, gain) / best)
    return {**figures, "impressions": float(both.sum()), "impressions_skipped": float((~both).sum())}
