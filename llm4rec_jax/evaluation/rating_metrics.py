"""Pointwise evaluation: scores of questions, metrics with intervals that allow for users having many questions each."""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.labeled import LabeledData, LabeledExamples
from llm4rec_jax.evaluation import metrics
from llm4rec_jax.evaluation.impressions import impression_metrics
from llm4rec_jax.evaluation.significance import Interval

Floats = NDArray[np.float64]

# Elements of a resampled block [resamples, n]: 16 MB in float64.
_BLOCK = 2**21


class PointwiseEvaluation(NamedTuple):
    """Attributes:
    summary: `auc` over all questions, `gauc` (within users, weighted by their likes), `log_loss` in nats, `accuracy` of
      the sign, and `rows`, `users`, `users_skipped` (by gauc: with labels of one class), `liked_share`. Where the
      questions come in impressions, `impression_auc`, `mrr`, `ndcg@5` and `ndcg@10` too; see `impression_metrics`.
    per_row: one row a question, in order: `user_id`, `item_id` (the target), `label`, `score`.
    """

    summary: dict[str, float]
    per_row: pl.DataFrame


class Difference(NamedTuple):
    """Attributes:
    difference: of two models' AUC, positive if the first is better, with its interval.
    p: two-sided, of the same resamples.
    """

    difference: Interval
    p: float


def evaluate(scores: ArrayLike, data: LabeledData, rows: LabeledExamples) -> PointwiseEvaluation:
    """Metrics of the scores [n] of questions, which are logits: their sigmoid is the probability of a like.

    Args:
      scores: one a question.
      data: whose tables the questions refer to.
      rows: the questions, e.g. `data.test`.

    Raises:
      ValueError: scores of another length or not finite, or labels of one class only.
    """
    scores, labels = np.asarray(scores, np.float64), rows.label.astype(np.float64)
    auc = metrics.auc(scores, labels)
    within = metrics.gauc(scores, labels, rows.user)
    summary = {
        "auc": auc,
        "gauc": within.value,
        "log_loss": float(np.mean(np.logaddexp(0.0, np.where(labels == 1, -scores, scores)))),
        "accuracy": float(np.mean((scores > 0) == (labels == 1))),
        "rows": float(rows.size),
        "users": float(within.users + within.users_skipped),
        "users_skipped": float(within.users_skipped),
        "liked_share": float(labels.mean()),
    }
    if rows.impression is not None:
        summary |= impression_metrics(scores, labels, rows.impression)
    per_row = pl.DataFrame(
        {
            "user_id": data.users["user_id"].gather(rows.user),
            "item_id": data.items["item_id"].gather(rows.target),
            "label": rows.label,
            "score": scores,
        }
    )
    return PointwiseEvaluation(summary, per_row)


def clustered_interval(
    scores: ArrayLike, labels: ArrayLike, users: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """AUC with its 95% bootstrap interval, clustered by user (Field & Welsh 2007, the cluster bootstrap).

    Users are drawn with replacement and bring all their questions. With few users percentile intervals tend to be too
    narrow: say how many there are.

    Args:
      scores: [n], or [S, n] of S trained models, whose AUCs are averaged within each resample.
      labels: [n] in {0, 1}.
      users: [n], of any type that can be sorted.
      resamples: Number of resamples; one that lacks a class is drawn again.
      seed: of the draw.

    Raises:
      ValueError: shapes differ, a score is not finite, labels are others or of one class, or no resamples.
    """
    values, found = _bootstrap(_checked(scores, labels), labels, users, resamples, seed)
    low, high = np.percentile(found, (2.5, 97.5))
    return Interval(float(values), float(low), float(high))


def clustered_difference(
    scores: ArrayLike, baseline: ArrayLike, labels: ArrayLike, users: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> Difference:
    """The difference of two models' AUC on the same questions, both under the same resampled users.

    p = 2 · min((c₋ + 1) / (R + 1), (c₊ + 1) / (R + 1)), at most 1, with c₋ and c₊ how many of the R resamples have a
    difference of at most and of at least zero: below 0.05 about where the interval leaves out zero.

    Args:
      scores, baseline: [n] or [S, n] each; S may differ, the means over it are compared.
      labels, users, resamples, seed: as for `clustered_interval`.

    Raises:
      ValueError: as `clustered_interval`.
    """
    ours, ours_found = _bootstrap(_checked(scores, labels), labels, users, resamples, seed)
    theirs, theirs_found = _bootstrap(_checked(baseline, labels), labels, users, resamples, seed)
    differences = ours_found - theirs_found
    low, high = np.percentile(differences, (2.5, 97.5))
    # A difference by rounding does not count.
    not_better, not_worse = (differences <= 1e-12).sum(), (differences >= -1e-12).sum()
    p = min(1.0, 2.0 * (min(not_better, not_worse) + 1) / (resamples + 1))
    return Difference(Interval(float(ours - theirs), float(low), float(high)), float(p))


def samples(frames: list[pl.DataFrame]) -> tuple[Floats, Floats, NDArray[np.str_]]:
    """Stacks the per-row results of S models: scores [S, n], labels [n], user ids [n], as the intervals want them.

    Raises:
      DataError: no frames, a column is missing, or the frames are of other questions.
    """
    if not frames:
        raise DataError("no per-row results were given; give one of each trained model")
    for number, frame in enumerate(frames):
        missing = {"user_id", "item_id", "label", "score"} - set(frame.columns)
        if missing:
            raise DataError(f"per-row results {number} lack {', '.join(sorted(missing))}; evaluate the run again")
        if not frame.select("user_id", "item_id", "label").equals(frames[0].select("user_id", "item_id", "label")):
            raise DataError(f"per-row results {number} are of other questions than the first; compare runs on one part")
    scores = np.stack([frame["score"].to_numpy() for frame in frames])
    return scores, frames[0]["label"].to_numpy().astype(np.float64), frames[0]["user_id"].to_numpy().astype(np.str_)


def weighted_auc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> Floats:
    """AUC of the same scores under many weightings of the questions: [R], NaN where a class has no weight.

    Σ w_i w_j ([s_i > s_j] + ½[s_i = s_j]) / Σ w_i Σ w_j, over likes i and others j. Sorts once, then sums up.

    Args:
      scores: [n].
      labels: [n] in {0, 1}.
      weights: [R, n], not negative.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    order = np.argsort(scores, kind="stable")
    ordered, liked = scores[order], labels[order] == 1
    # Questions with equal scores are one group, in which a like beats half.
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    weights = np.asarray(weights, np.float64)[:, order]
    positive = np.add.reduceat(weights * liked, starts, axis=1)
    negative = np.add.reduceat(weights * ~liked, starts, axis=1)
    beaten = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    with np.errstate(invalid="ignore"):
        return (positive * beaten).sum(1) / pairs


def _checked(scores: ArrayLike, labels: ArrayLike) -> Floats:
    """Scores as [S, n], each row a valid argument of `metrics.auc` with the labels."""
    scores = np.atleast_2d(np.asarray(scores, np.float64))
    if not scores.shape[0]:
        raise ValueError("no scores; give those of at least one model")
    for row in scores:
        metrics.auc(row, labels)
    return scores


def _bootstrap(scores: Floats, labels: ArrayLike, users: ArrayLike, resamples: int, seed: int) -> tuple[float, Floats]:
    """The mean AUC over S, and its values [resamples] under resampled users, which depend on users and seed only."""
    labels = np.asarray(labels, np.float64)
    names, user = np.unique(np.asarray(users), return_inverse=True)
    if user.shape != labels.shape:
        raise ValueError(f"users {user.shape} and labels {labels.shape} must be vectors of one length")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, must be at least 1")
    likes = np.bincount(user, labels, minlength=len(names))
    others = np.bincount(user, 1 - labels, minlength=len(names))
    rng = np.random.default_rng(seed)
    even = np.full(len(names), 1 / len(names))
    found = []
    for start in range(0, resamples, _rows(labels.size)):
        counts = rng.multinomial(len(names), even, size=min(_rows(labels.size), resamples - start))
        while (lacking := (counts @ likes == 0) | (counts @ others == 0)).any():
            counts[lacking] = rng.multinomial(len(names), even, size=lacking.sum())
        weights = counts[:, user]
        found.append(np.mean([weighted_auc(row, labels, weights) for row in scores], axis=0))
    return float(np.mean([metrics.auc(row, labels) for row in scores])), np.concatenate(found)


def _rows(n: int) -> int:
    """Returns the number of resamples of n examples in one block."""
    return max(1, _BLOCK // n)
