"""Tests of differences between models: against scipy and statsmodels, and how often they err."""

import itertools

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from llm4rec_jax.evaluation.significance import _signs, compare, holm, interval, sign_flip


def ndcg(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Values as NDCG@10 has them: most are zero."""
    ranks = rng.geometric(0.05, shape)
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0)


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_sign_flip_is_scipys_exact_test_but_for_sampling(shift):
    """Twelve users have 4,096 patterns of signs, which scipy goes through."""
    differences = np.random.default_rng(3).normal(shift, 1, 12)
    exact = scipy.stats.permutation_test(
        (differences,), lambda x, axis: np.abs(x.mean(axis)), permutation_type="samples", alternative="greater",
        vectorized=True, n_resamples=np.inf,
    ).pvalue  # fmt: skip
    samples = 100_000
    found = sign_flip(differences, samples)[0]
    assert abs(found - exact) <= 4 * (exact * (1 - exact) / samples) ** 0.5 + 1 / samples


def test_ties_count_as_at_least_as_far():
    # The seen sum is zero, and no sum is nearer.
    assert sign_flip(np.array([1.0, -1.0]))[0] == 1.0
    # Two of eight patterns have the sum .6, which depends in its last bit on the order of the terms.
    for order in itertools.permutations([0.1, 0.2, 0.3]):
        assert sign_flip(np.array(order))[0] == pytest.approx(0.25, abs=0.02)


def test_more_users_than_fit_at_a_time():
    """Signs of 300,001 users, three patterns at a time."""
    signs = np.concatenate(list(_signs(10, 300_001, 0)))
    assert signs.shape == (10, 300_001)
    assert set(np.unique(signs)) == {-1, 1}
    assert np.abs(signs @ signs.T / 300_001 - np.eye(10)).max() < 5 / 300_001**0.5
    assert sign_flip(np.ones(300_001), 10)[0] == 1 / 11


def test_rejections_of_a_thousand_true_nulls():
    """Two models of the same quality, on 200 users: at .05, a false rejection in twenty."""
    rng = np.random.default_rng(0)
    rejections = int((sign_flip(ndcg(rng, 1000, 200) - ndcg(rng, 1000, 200), 2000) < 0.05).sum())
    low, high = scipy.stats.binom.interval(0.99, 1000, 0.05)
    assert low <= rejections <= high


def test_holm_keeps_the_false_rejections_of_a_family():
    rng = np.random.default_rng(1)
    p = sign_flip(ndcg(rng, 2000, 100) - ndcg(rng, 2000, 100), 2000).reshape(200, 10)
    families = sum(bool((holm(row) < 0.05).any()) for row in p)
    assert families <= scipy.stats.binom.interval(0.99, 200, 0.05)[1]


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_holm_is_statsmodels(n):
    p = np.random.default_rng(n).uniform(0, 0.2, n).round(2)
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)
    np.testing.assert_array_equal(holm(p[:, None])[:, 0], holm(p))


def test_interval_covers_the_mean():
    """About 95 of a hundred intervals hold the true mean."""
    rng = np.random.default_rng(2)
    true = (0.05 * 0.95 ** np.arange(10) / np.log2(np.arange(2, 12))).sum()
    found = [interval(ndcg(rng, 300), 500) for _ in range(100)]
    assert 87 <= sum(low <= true <= high for _, low, high in found) <= 100
    assert all(low < mean < high for mean, low, high in found)


def test_compare_averages_seeds_first():
    rng = np.random.default_rng(4)
    base, better = ndcg(rng, 3, 400), ndcg(rng, 2, 400)
    better = better + 0.3 * (rng.uniform(size=400) < 0.4)
    models = {"base": {"ndcg": base}, "same": {"ndcg": base[::-1]}, "better": {"ndcg": better}}
    found = compare(models, "base")
    assert list(found) == ["same", "better"]
    assert found["same"]["ndcg"].difference == (0, 0, 0)
    assert found["same"]["ndcg"].p == found["same"]["ndcg"].adjusted == 1
    (difference, low, high), p, adjusted = found["better"]["ndcg"]
    mine = better.mean(0) - base.mean(0)
    assert difference == pytest.approx(mine.mean())
    assert 0 < low < difference < high
    assert p == sign_flip(mine)[0]
    assert adjusted == 2 * p < 0.05


def test_compare_adjusts_over_models_and_metrics():
    rng = np.random.default_rng(5)
    models = {name: {m: rng.normal(size=50) for m in ("a", "b", "c")} for name in ("x", "y", "z")}
    found = [c for own in compare(models, "x").values() for c in own.values()]
    np.testing.assert_allclose([c.adjusted for c in found], multipletests([c.p for c in found], method="holm")[1])
    # Wherever the baseline stands.
    assert compare({name: models[name] for name in ("y", "z", "x")}, "x") == compare(models, "x")
    assert compare({"x": models["x"]}, "x") == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "popularity"}, "the baseline 'popularity' is none of x, y"),
        ({"y": {"b": np.zeros(5)}}, "y has the metrics b, and x has a"),
        ({"y": {"a": np.zeros(4)}}, "y has 4 users, and x has 5; they must be the same, in the same order"),
        ({"y": {"a": np.full(5, np.nan)}}, "all of them finite"),
    ],
)
def test_compare_refuses(change, message):
    models = {"x": {"a": np.ones(5)}, "y": {"a": np.zeros(5)}} | {k: v for k, v in change.items() if k != "baseline"}
    with pytest.raises(ValueError, match=message):
        compare(models, change.get("baseline", "x"))


def test_sign_flip_refuses():
    with pytest.raises(ValueError, match=r"differences of shape \(1, 0\)"):
        sign_flip(np.zeros((1, 0)))
    with pytest.raises(ValueError, match="samples is 0"):
        sign_flip(np.ones(3), 0)
