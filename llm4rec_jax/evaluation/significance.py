"""Whether one model is better than another: paired over users, each of which is first averaged over seeds."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean over users and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A model against the baseline in one metric.

    Attributes:
      difference: mean over users, positive if the model's values are larger, with its interval.
      p: of the sign-flip test, two-sided.
      adjusted: the same, adjusted for all comparisons that were made together.
    """

    difference: Interval
    p: float
    adjusted: float


def interval(values: np.ndarray, resamples: int = 2000) -> Interval:
    """Mean over users [n], with the percentile bootstrap's 95% interval (Efron 1979)."""
    import scipy.stats  # takes a second to import

    found = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, batch=200, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Interval(float(values.mean()), float(found.low), float(found.high))


def sign_flip(differences: np.ndarray, samples: int = 10_000, seed: int = 0) -> np.ndarray:
    """p-values [K] of Fisher's randomisation test, two-sided, of paired differences [K, n] against a mean of zero.

    If a user's two values could as well be exchanged, any pattern of signs is as likely as the one that was seen:
    p = (c + 1) / (B + 1), with c how many of B random patterns have a mean at least as far from zero (Smucker et al.
    2007, doi 10.1145/1321440.1321528; the ones are Phipson & Smyth's, 2010). All K share the patterns.

    Args:
      differences: one row a comparison, one column a user.
      samples: B.
      seed: of the patterns.

    Raises:
      ValueError: no users, a difference that is not finite, or fewer than one sample.
    """
    differences = np.atleast_2d(np.asarray(differences, np.float64))
    if differences.size == 0 or not np.isfinite(differences).all():
        raise ValueError(f"differences of shape {differences.shape}: there must be some, and all of them finite")
    if samples < 1:
        raise ValueError(f"samples is {samples}, must be at least 1")
    seen = np.abs(differences.sum(1))
    # Sums of the same numbers in another order may differ in their last bits.
    least = seen - 1e-9 * np.abs(differences).sum(1)
    count = np.zeros(len(differences), int)
    for signs in _signs(samples, differences.shape[1], seed):
        count += (np.abs(signs @ differences.T) >= least).sum(0)
    return (count + 1) / (samples + 1)


def _signs(samples: int, users: int, seed: int) -> Iterator[np.ndarray]:
    """Random signs [some, users], `samples` rows in all, a few megabytes at a time."""
    rng = np.random.default_rng(seed)
    some = max(1, 2**20 // users)
    for start in range(0, samples, some):
        rows = min(some, samples - start)
        bits = np.unpackbits(np.frombuffer(rng.bytes(-(-rows * users // 8)), np.uint8), count=rows * users)
        yield 2.0 * bits.reshape(rows, users) - 1.0


def holm(p: np.ndarray) -> np.ndarray:
    """p-values of any shape, adjusted: a false rejection among them has the level's probability (Holm 1979)."""
    flat = np.asarray(p, np.float64).ravel()
    order = np.argsort(flat, kind="stable")
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.maximum.accumulate(flat[order] * np.arange(len(flat), 0, -1)), 1.0)
    return adjusted.reshape(np.shape(p))


def compare(
    models: Mapping[str, Mapping[str, np.ndarray]], baseline: str, samples: int = 10_000
) -> dict[str, dict[str, Comparison]]:
    """Every other model against the baseline, in every metric; Holm's adjustment is over all of them.

    Args:
      models: model to metric to values [seeds, users] or [users]; the same users in the same order everywhere. Models
        may have different numbers of seeds.
      baseline: one of the models.
      samples: of the sign-flip test.

    Raises:
      ValueError: the baseline is none of the models, metrics or users differ between models, or a value is not finite.
    """
    if baseline not in models:
        raise ValueError(f"the baseline {baseline!r} is none of {', '.join(models)}")
    metrics = list(models[baseline])
    values = {}
    for model, own in models.items():
        if set(own) != set(metrics):
            raise ValueError(f"{model} has the metrics {', '.join(own)}, and {baseline} has {', '.join(metrics)}")
        values[model] = np.stack([np.atleast_2d(np.asarray(own[m], np.float64)).mean(0) for m in metrics])
    users = values[baseline].shape[1]
    for model, own in values.items():
        if own.shape[1] != users:
            raise ValueError(
                f"{model} has {own.shape[1]:,} users, and {baseline} has {users:,}; they must be the same, in the same "
                "order"
            )
    others = [model for model in models if model != baseline]
    if not others:
        return {}
    differences = np.stack([values[model] - values[baseline] for model in others])
    # A difference by rounding, of means over seeds in another order, does not count.
    differences[np.abs(differences) <= 1e-12 * np.abs(values[baseline]).max(1, keepdims=True)] = 0.0
    p = sign_flip(differences.reshape(-1, differences.shape[-1]), samples).reshape(differences.shape[:2])
    adjusted = holm(p)
    return {
        model: {
            metric: Comparison(interval(differences[i, j]), float(p[i, j]), float(adjusted[i, j]))
            for j, metric in enumerate(metrics)
        }
        for i, model in enumerate(others)
    }
