"""The AUC of labelled rows: intervals and differences by a bootstrap over users, each with all of their rows."""

from collections.abc import Sequence

import numpy as np

from experiments.table_runs import Run
from llm4rec_jax.significance import Interval

_RESAMPLES = 5000


def auc_interval(runs: Sequence[Run]) -> Interval:
    """The mean AUC of runs over the same rows, with the percentile bootstrap's 95% interval, clustered by user."""
    drawn = _resampled(runs)
    return Interval(_measured(runs), *np.quantile(drawn, [0.025, 0.975]).tolist())


def auc_difference(runs: Sequence[Run], base: Sequence[Run]) -> tuple[Interval, float]:
    """How much larger the mean AUC is than that of other runs over the same rows, with interval and two-sided p.

    Both have the same users in every resample. A global AUC is no mean over users, so that no signs can be flipped:
    p is twice the smaller share of resamples on one side of zero, each side counted with one more.
    """
    drawn = _resampled(runs) - _resampled(base)
    # What is rounding is no difference.
    drawn[np.abs(drawn) < 1e-12] = 0.0
    less = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    difference = Interval(_measured(runs) - _measured(base), *np.quantile(drawn, [0.025, 0.975]).tolist())
    return difference, min(1.0, 2 * (less + 1) / (len(drawn) + 1))


def _measured(runs: Sequence[Run]) -> float:
    return float(np.mean([run.result["test"]["auc"] for run in runs]))


def _resampled(runs: Sequence[Run]) -> np.ndarray:
    """The mean AUC over runs, by resample [5000]; which users a resample has depends on their number only."""
    users, of_row = np.unique(runs[0].tested["user_id"].to_numpy(), return_inverse=True)
    labels = runs[0].tested["label"].to_numpy() > 0
    rng = np.random.default_rng(0)
    draws = rng.multinomial(len(users), np.full(len(users), 1 / len(users)), size=_RESAMPLES).astype(np.float64)
    # One that lacks a class has no AUC.
    positives = np.bincount(of_row[labels], minlength=len(users))
    negatives = np.bincount(of_row[~labels], minlength=len(users))
    draws = draws[(draws @ positives > 0) & (draws @ negatives > 0)]
    total = np.zeros(len(draws))
    for run in runs:
        scores = run.tested["score"].to_numpy().astype(np.float64)
        order = np.argsort(scores[~labels], kind="stable")
        below = scores[~labels][order]
        lower = np.searchsorted(below, scores[labels], side="left")
        upper = np.searchsorted(below, scores[labels], side="right")
        some = max(1, 2**24 // len(scores))
        for start in range(0, len(draws), some):
            weights = draws[start : start + some]
            up = np.cumsum(weights[:, of_row[~labels][order]], axis=1)
            up = np.concatenate([np.zeros((len(up), 1)), up], axis=1)
            positive = weights[:, of_row[labels]]
            # A tie counts half.
            won = (positive * (up[:, lower] + up[:, upper])).sum(1) / 2
            total[start : start + some] += won / (positive.sum(1) * up[:, -1])
    return total / len(runs)
