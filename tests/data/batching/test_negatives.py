"""Negatives against the exact conditional distribution, and never the user's own."""

import numpy as np
import pytest
from scipy import stats

from llm4rec_jax.data.batching.negatives import NegativeSampler
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.splits.split import Sequences

COUNTS = np.array([40, 0, 3, 9, 1, 25, 2, 0, 14, 6])
KNOWN = np.array([1, 1, 1, 1, 1, 0, 1, 1, 1, 1], bool)
# Duplicates, nothing, all but item 7, an unknown item, the two ends.
HISTORIES = [[3, 0, 3, 3], [], [0, 1, 2, 3, 4, 6, 8, 9], [5, 2], [9, 0]]


def sequences(histories: list[list[int]]) -> Sequences:
    items = np.array([item for history in histories for item in history], np.int32)
    return Sequences(np.cumsum([0, *map(len, histories)]), items, None, None)


def sampler(alpha: float = 0.0, histories: list[list[int]] = HISTORIES) -> NegativeSampler:
    return NegativeSampler(sequences(histories), KNOWN, COUNTS, alpha)


@pytest.mark.parametrize("alpha", [0.0, 0.75, 1.0])
def test_draws_follow_the_distribution_given_that_the_item_is_not_the_users(alpha):
    draws = sampler(alpha)(np.random.default_rng(0), np.arange(len(HISTORIES)), 50_000)
    assert draws.shape == (len(HISTORIES), 50_000)
    assert draws.dtype == np.int32
    for history, drawn in zip(HISTORIES, draws, strict=True):
        weights = KNOWN * np.maximum(COUNTS, 0.5) ** alpha
        weights[history] = 0
        observed, possible = np.bincount(drawn, minlength=len(COUNTS)), weights > 0
        assert not observed[~possible].any()
        if possible.sum() > 1:
            expected = weights[possible] / weights.sum() * drawn.size
            assert stats.chisquare(observed[possible], expected).pvalue > 1e-3


def test_no_user_is_given_an_own_or_an_unknown_item():
    rng = np.random.default_rng(1)
    known = rng.random(60) < 0.8
    # From one item to all known but one, some more than once.
    lengths = np.r_[0, 1, rng.integers(1, 40, 30), known.sum() - 1]
    histories = [rng.permutation(np.flatnonzero(known))[:n].tolist() for n in lengths]
    histories = [history + history[: n // 2] for history, n in zip(histories, lengths, strict=True)]
    for alpha in (0.0, 1.0):
        draw = NegativeSampler(sequences(histories), known, rng.integers(0, 10**6, 60) ** 2, alpha)
        users = rng.integers(len(histories), size=400)
        for user, items in zip(users, draw(rng, users, 50), strict=True):
            assert not np.isin(items, histories[user]).any()
            assert known[items].all()


def test_a_user_who_lacks_a_single_item_gets_that():
    assert (sampler(1.0)(np.random.default_rng(0), np.array([2, 2]), 9) == 7).all()


def test_a_user_with_every_known_item_is_refused():
    everything = np.flatnonzero(KNOWN).tolist()
    with pytest.raises(DataError, match=r"user row 1 \(of 2 such users\) has all 9 known items"):
        sampler(0.5, [[0], everything, [*everything, 5]])


def test_draws_are_a_function_of_the_generator():
    draw, users = sampler(0.75), np.array([0, 1, 1, 4])
    first, again, other = (draw(np.random.default_rng(seed), users, 30) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[1] != first[2]).any()
