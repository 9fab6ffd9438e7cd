"""Results by kind of user: bands of their activity and of their targets' popularity."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.reports.finished_runs import FinishedRun
from experiments.reports.statistics import by_user
from llm4rec_jax.evaluation.significance import Interval, interval


class Band(NamedTuple):
    """Users between two quantiles: their name, and a mask of them, bool [E]."""

    name: str
    members: np.ndarray


class Banding(NamedTuple):
    """A way to part users: a title and its bands."""

    title: str
    bands: list[Band]


def bandings(runs: Sequence[FinishedRun], parts: int = 4) -> list[Banding]:
    """The users of runs on the same users, by activity and by popularity of their targets; cold targets apart.

    Args:
      runs: of a table. The first that says of its users what this needs, says it for all.
      parts: number of quantiles; fewer where users are alike.

    Returns:
      Nothing where no run says it.
    """
    about = next((run.tested for run in runs if {"history", "target_popularity"} <= set(run.tested.columns)), None)
    if about is None or runs[0].pointwise:
        return []
    history, popularity = about["history"].to_numpy(), about["target_popularity"].to_numpy()
    warm = _bands(popularity, popularity > 0, parts)
    cold = [Band("cold (0)", popularity == 0)] if (popularity == 0).any() else []
    return [
        Banding("items in the history", _bands(history, np.ones(len(history), bool), parts)),
        Banding("training interactions of the target", [*cold, *warm]),
    ]


def _bands(values: np.ndarray, among: np.ndarray, parts: int) -> list[Band]:
    if not among.any():
        return []
    levels = np.quantile(values[among], np.arange(1, parts) / parts, method="inverted_cdf")
    number = np.searchsorted(np.unique(levels), values, side="left")
    bands = []
    for i in np.unique(number[among]):
        members = among & (number == i)
        low, high = values[members].min(), values[members].max()
        bands.append(Band(f"{low:.5g}" if low == high else f"{low:.5g}–{high:.5g}", members))
    return bands


def result(runs: Sequence[FinishedRun], metric: str, members: np.ndarray) -> Interval | None:
    """The mean of a metric over some users, each averaged over seeds, with its interval.

    None for a metric that has no values by user. One user alone has no interval: it is not a number.
    """
    values = by_user(runs, metric)
    if values is None:
        return None
    some = values.mean(0)[members]
    return interval(some) if len(some) > 1 else Interval(float(some[0]), float("nan"), float("nan"))
