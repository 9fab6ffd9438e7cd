"""Offline metrics from exact ranks, pointwise metrics, and metrics beyond accuracy, in NumPy float64.

The rank of a target p is 1 + #{j: s_j > s_p} + #{j ≠ p: s_j = s_p} over the unmasked items: ties count against the
model, and constant scores rank every target last. Metrics of users come as [E], E the users with at least one target
in row order (`evaluated`); users without a target are left out and counted in the summary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm4rec_jax.inference.ranks import Ranks

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Metrics of which a smaller value is better; a cut-off may follow.
_LESS = ("mean_rank", "rmse", "mae", "log_loss", "gini", "mean_popularity")


def less_is_better(metric: str) -> bool:
    """Returns whether a smaller value of a metric, such as "log_loss" or "ndcg@10", is better."""
    return metric.split("@")[0] in _LESS


def is_better(metric: str, value: float, than: float) -> bool:
    """Returns whether one value of a metric is better than another."""
    return value < than if less_is_better(metric) else value > than


class GroupAUC(NamedTuple):
    """Mean AUC weighted by positives, over `users`; `users_skipped` have labels of one class only."""

    value: float
    users: int
    users_skipped: int


def ranks(scores: ArrayLike, targets: ArrayLike, masked: ArrayLike | None = None) -> Ranks:
    """Returns the ranks of the targets of one user, by definition.

    Args:
      scores: [N], one an item.
      targets: int [n]; an item that is there twice is one target.
      masked: bool [N], True for items that are not ranked.

    Raises:
      ValueError: a score that is ranked is not finite, or a target is masked.

    Example:
      >>> ranks([3.0, 2.0, 2.0, 1.0], [0, 2, 0]).rank.tolist()
      [1, 3]
    """
    scores = np.asarray(scores, np.float64)
    targets = np.asarray(list(dict.fromkeys(np.asarray(targets, np.int64).tolist())), np.int64)
    ranked = np.ones(scores.shape, bool) if masked is None else ~np.asarray(masked, bool)
    _check_finite("scores", scores[ranked])
    if not ranked[targets].all():
        raise ValueError(f"{np.count_nonzero(~ranked[targets])} of {targets.size} targets are masked")
    ordered = np.sort(scores[ranked])
    below = np.searchsorted(ordered, scores[targets], side="left")
    upto = np.searchsorted(ordered, scores[targets], side="right")
    size = np.int64(ordered.size)
    return Ranks(np.array([0, targets.size]), size - below, upto - below - 1, np.array([size]))


def evaluated(ranks: Ranks) -> Ints:
    """Row indices [E] of the users with at least one target."""
    return np.flatnonzero(np.diff(ranks.offsets))


def hit_rate(ranks: Ranks, k: int) -> Floats:
    """1 if any target ranks within k, else 0. -> [E]."""
    return (_hits(ranks, k) > 0).astype(np.float64)


def recall(ranks: Ranks, k: int) -> Floats:
    """Targets within k by all targets, hits / |R_u|. -> [E]."""
    return _hits(ranks, k) / _positives(ranks)


def precision(ranks: Ranks, k: int) -> Floats:
    """Targets within k by the cutoff, hits / k. -> [E]."""
    return _hits(ranks, k) / k


def reciprocal_rank(ranks: Ranks, k: int | None = None) -> Floats:
    """1 / rank of the best target, 0 if that lies beyond k. -> [E]."""
    best = np.minimum.reduceat(ranks.rank, ranks.offsets[evaluated(ranks)])
    return np.where(best <= (best if k is None else k), 1.0 / best, 0.0)


def ndcg(ranks: Ranks, k: int) -> Floats:
    """DCG of gain 1 and discount 1 / log2(rank + 1), by that of min(|R_u|, k) leading targets. -> [E]."""
    gain = np.where(ranks.rank <= k, 1.0 / np.log2(ranks.rank + 1.0), 0.0)
    ideal = np.cumsum(1.0 / np.log2(np.arange(1, k + 1) + 1.0))
    return _sum(ranks, gain) / ideal[np.minimum(_positives(ranks), k) - 1]


def average_precision(ranks: Ranks, k: int, attainable: bool = False) -> Floats:
    """Sum of the precision at each target within k, by |R_u| (trec_eval) or by min(|R_u|, k) (RecBole).

    The latter if `attainable`. Targets which share a rank all count as hits at that rank. -> [E].
    """
    better, tied = _rivals(ranks)
    total = _sum(ranks, np.where(ranks.rank <= k, (better + tied) / ranks.rank, 0.0))
    positives = _positives(ranks)
    return total / (np.minimum(positives, k) if attainable else positives)


def user_auc(ranks: Ranks) -> Floats:
    """Share of (target, other item) pairs in the right order, ties one half; no other target of the user is a negative.

    -> [E]. A user whose candidates are all targets has no pair to order and gets 0.5, the value of a tie.
    """
    better, tied = _rivals(ranks)
    # A rank is 1 + the better + the tied candidates, so equal scores are equal ranks; what remains is not a target.
    negatives_tied = ranks.ties - (tied - 1)
    negatives_better = ranks.rank - 1 - ranks.ties - better
    lost = _sum(ranks, negatives_better + 0.5 * negatives_tied)
    positives = _positives(ranks)
    pairs = positives * (ranks.candidates[evaluated(ranks)] - positives)
    return np.where(pairs > 0, 1.0 - lost / np.maximum(pairs, 1), 0.5)


def evaluate_ranks(ranks: Ranks, ks: Sequence[int] = (5, 10, 20)) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """All metrics of ranks: those of each user, [E] under their names with the rows under "user", and their means.

    Names: hr, recall, precision, ndcg, rr, ap and ap_min at each k ("hr@10"), mrr, auc, mean_rank (of the user's
    targets). The summary adds gauc (AUC weighted by targets), users and users_skipped, and does not depend on the order
    of users. Raises ValueError for ranks that cannot be, a cutoff below 1, or no user with a target.
    """
    _check_ranks(ranks)
    if min(ks, default=1) < 1:
        raise ValueError(f"cutoffs must be at least 1, got {tuple(ks)}")
    users = evaluated(ranks)
    if not users.size:
        raise ValueError(f"none of {ranks.candidates.size} users has a target: nothing to evaluate")
    values: dict[str, np.ndarray] = {}
    for k in ks:
        values[f"hr@{k}"] = hit_rate(ranks, k)
        values[f"recall@{k}"] = recall(ranks, k)
        values[f"precision@{k}"] = precision(ranks, k)
        values[f"ndcg@{k}"] = ndcg(ranks, k)
        values[f"rr@{k}"] = reciprocal_rank(ranks, k)
        values[f"ap@{k}"] = average_precision(ranks, k)
        values[f"ap_min@{k}"] = average_precision(ranks, k, attainable=True)
    positives = _positives(ranks)
    values["mrr"] = reciprocal_rank(ranks)
    values["auc"] = user_auc(ranks)
    values["mean_rank"] = _sum(ranks, ranks.rank) / positives
    summary = {name: _mean(value) for name, value in values.items()}
    summary["gauc"] = math.fsum((values["auc"] * positives).tolist()) / int(positives.sum())
    summary["users"] = float(users.size)
    summary["users_skipped"] = float(ranks.candidates.size - users.size)
    return {"user": users, **values}, summary


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve with average ranks for ties. scores [n], labels [n] in {0, 1}.

    Raises ValueError for non-finite scores, other labels, or labels of one class.
    """
    scores, labels = _scored_labels(scores, labels)
    value, positives, negatives = grouped_auc(scores, labels, np.zeros(scores.size, np.int64))
    if not (positives.any() and negatives.any()):
        raise ValueError(f"AUC needs both classes, got {labels.sum()} positives of {labels.size}")
    return float(value[0])


def gauc(scores: ArrayLike, labels: ArrayLike, users: ArrayLike) -> GroupAUC:
    """AUC within each user, weighted by the user's positives (Zhu et al. 2017). scores, labels, users [n].

    Raises ValueError as `auc`, and if no user has both classes.
    """
    scores, labels = _scored_labels(scores, labels)
    _, group = np.unique(np.asarray(users), return_inverse=True)
    value, positives, negatives = grouped_auc(scores, labels, group)
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        raise ValueError(f"group AUC needs a user with both classes, none of {both.size} has")
    weighted = math.fsum((value[both] * positives[both]).tolist()) / float(positives[both].sum())
    return GroupAUC(weighted, int(both.sum()), int((~both).sum()))


def rmse(predictions: ArrayLike, ratings: ArrayLike) -> float:
    """Root mean squared error in rating units. [n], [n]. Raises ValueError for non-finite or no values."""
    return float(np.sqrt(np.mean(np.square(_errors(predictions, ratings)))))


def mae(predictions: ArrayLike, ratings: ArrayLike) -> float:
    """Mean absolute error in rating units. [n], [n]. Raises ValueError for non-finite or no values."""
    return float(np.mean(np.abs(_errors(predictions, ratings))))


def coverage(lists: ArrayLike, num_items: int) -> float:
    """Share of the catalogue in at least one list. lists int [users, K], padded with -1."""
    return np.count_nonzero(_exposure(lists, num_items)) / num_items


def gini(lists: ArrayLike, num_items: int) -> float:
    """Gini index of the exposure of all items, 0 if equal, 1 - 1/I if one item takes it all. lists int [users, K]."""
    exposure = np.sort(_exposure(lists, num_items))
    position = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float(position @ exposure / (num_items * exposure.sum()))


def novelty(lists: ArrayLike, popularity: ArrayLike) -> float:
    """Self-information -log2 p(i) in bits, mean over each list, then over users (Zhou et al. 2010).

    lists int [users, K], popularity [I] interaction counts, p their share. A count of 0 is taken as 1: an item never
    seen is as novel as one seen once, not infinitely so.
    """
    popularity = np.asarray(popularity, np.float64)
    return _list_mean(lists, -np.log2(np.maximum(popularity, 1.0) / max(popularity.sum(), 1.0)))


def mean_popularity(lists: ArrayLike, popularity: ArrayLike) -> float:
    """Popularity, mean over each list, then over users. lists int [users, K], popularity [I] interaction counts."""
    return _list_mean(lists, np.asarray(popularity, np.float64))


def intra_list_diversity(lists: ArrayLike, vectors: ArrayLike) -> float:
    """1 - mean cosine of the pairs in a list, then mean over users (Ziegler et al. 2005).

    lists int [users, K], vectors [I, D]. Lists of fewer than two items are left out; a zero vector is orthogonal to
    all. Raises ValueError if no list has two items.
    """
    vectors = np.asarray(vectors, np.float64)
    _check_finite("vectors", vectors)
    lists, valid = _lists(lists, len(vectors))
    lists, valid = lists[valid.sum(1) > 1], valid[valid.sum(1) > 1]
    if not len(lists):
        raise ValueError("intra-list diversity needs a list of at least two items")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    total = np.zeros((len(lists), vectors.shape[1]))
    # Column by column: [users, K, D] at once would not fit for a large evaluation.
    for column, present in zip(lists.T, valid.T, strict=True):
        total += unit[column] * present[:, None]
    own = (valid * (norms[lists, 0] > 0)).sum(1)
    size = valid.sum(1)
    return _mean(1.0 - (np.square(total).sum(1) - own) / (size * (size - 1)))


def _check_finite(name: str, values: Floats) -> None:
    bad = values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        raise ValueError(f"{bad} of {values.size} {name} are not finite")


def _check_ranks(ranks: Ranks) -> None:
    counts = np.diff(ranks.offsets)
    if (
        len(counts) != len(ranks.candidates)
        or (counts < 0).any()
        or ranks.offsets[[0, -1]].tolist() != [0, len(ranks.rank)]
    ):
        raise ValueError(
            f"offsets do not cut {len(ranks.rank)} ranks into rows of {len(ranks.candidates)} users in ascending order"
        )
    last = np.repeat(ranks.candidates, counts)
    bad = np.count_nonzero((ranks.ties < 0) | (ranks.rank < 1 + ranks.ties) | (ranks.rank > last))
    if bad:
        raise ValueError(f"{bad} of {len(last)} ranks lie outside [1 + ties, candidates]")


def _positives(ranks: Ranks) -> Ints:
    return np.diff(ranks.offsets)[evaluated(ranks)]


def _sum(ranks: Ranks, values: np.ndarray) -> np.ndarray:
    """Sum over the targets of each user. [n] -> [E]."""
    # The starts of the non-empty rows suffice: a row ends where the next non-empty one starts.
    return np.add.reduceat(values, ranks.offsets[evaluated(ranks)])


def _hits(ranks: Ranks, k: int) -> Ints:
    return _sum(ranks, (ranks.rank <= k).astype(np.int64))


def _rivals(ranks: Ranks) -> tuple[Ints, Ints]:
    """Targets of the same user of a better rank, and of the same rank, itself included. [n], [n]."""
    counts = np.diff(ranks.offsets)
    key = np.repeat(np.arange(len(counts)), counts) * (ranks.rank.max(initial=0) + 1) + ranks.rank
    ordered = np.sort(key)
    first = np.searchsorted(ordered, key, side="left")
    return first - np.repeat(ranks.offsets[:-1], counts), np.searchsorted(ordered, key, side="right") - first


def _mean(values: np.ndarray) -> float:
    # An exactly rounded sum is the same in every order.
    return math.fsum(values.tolist()) / values.size


def _scored_labels(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    scores, labels = _paired("scores", scores, "labels", labels)
    other = np.count_nonzero((labels != 0) & (labels != 1))
    if other:
        raise ValueError(f"{other} of {labels.size} labels are neither 0 nor 1")
    return scores, labels


def _paired(name: str, values: ArrayLike, other_name: str, others: ArrayLike) -> tuple[Floats, Floats]:
    values, others = np.asarray(values, np.float64), np.asarray(others, np.float64)
    if values.shape != others.shape or values.ndim != 1 or not values.size:
        raise ValueError(
            f"{name} {values.shape} and {other_name} {others.shape} must be vectors of one length, not empty"
        )
    _check_finite(name, values)
    _check_finite(other_name, others)
    return values, others


def _errors(predictions: ArrayLike, ratings: ArrayLike) -> Floats:
    values, others = _paired("predictions", predictions, "ratings", ratings)
    return values - others


def grouped_auc(scores: Floats, labels: Floats, group: Ints) -> tuple[Floats, np.ndarray, np.ndarray]:
    """AUC (meaningless where a class is missing), positives and negatives of each group. [n] -> [groups]."""
    order = np.lexsort((scores, group))
    scores, labels, group = scores[order], labels[order], group[order]
    new = np.append(True, (scores[1:] != scores[:-1]) | (group[1:] != group[:-1]))
    starts = np.flatnonzero(new)
    sizes = np.diff(np.append(starts, scores.size))
    average_rank = (starts + (sizes + 1) / 2)[np.cumsum(new) - 1] - np.searchsorted(group, group)
    positives = np.bincount(group, labels)
    negatives = np.bincount(group, 1.0 - labels)
    won = np.bincount(group, labels * average_rank) - positives * (positives + 1) / 2
    return won / np.maximum(positives * negatives, 1.0), positives, negatives


def _lists(lists: ArrayLike, num_items: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Lists as int64 [users, K] and where they hold an item."""
    lists = np.asarray(lists, np.int64)
    bad = np.count_nonzero((lists < -1) | (lists >= num_items))
    if lists.ndim != 2 or bad:
        raise ValueError(f"lists {lists.shape} must be [users, K] of -1 or items below {num_items}; {bad} are not")
    return lists, lists >= 0


def _exposure(lists: ArrayLike, num_items: int) -> Ints:
    lists, valid = _lists(lists, num_items)
    if not valid.any():
        raise ValueError("the lists hold no item")
    return np.bincount(lists[valid], minlength=num_items)


def _list_mean(lists: ArrayLike, values: Floats) -> float:
    _check_finite("values", values)
    lists, valid = _lists(lists, len(values))
    size = valid.sum(1)
    if not size.any():
        raise ValueError("the lists hold no item")
    return _mean((values[lists] * valid).sum(1)[size > 0] / size[size > 0])
