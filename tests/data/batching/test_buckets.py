"""Sizes to pad to, against their definitions."""

from itertools import combinations

import numpy as np
import pytest

from llm4rec_jax.data.batching.buckets import bucket, group_lengths, text_bucket, token_bucket


def test_buckets_hold_the_size_and_are_few():
    assert [bucket(n) for n in (1, 16, 17, 25, 33, 49, 65, 97)] == [16, 16, 24, 32, 48, 64, 96, 128]
    for multiple_of in range(1, 13):
        sizes = [bucket(n, multiple_of) for n in range(1, 500)]
        assert all(size >= n and size % multiple_of == 0 for n, size in enumerate(sizes, 1))
        assert sizes == sorted(sizes)
        assert len(set(sizes)) <= 11
    assert [token_bucket(n) for n in (0, 8, 9, 33, 512, 513, 1025)] == [8, 8, 16, 48, 512, 1024, 1536]


def test_a_bucket_is_at_most_a_quarter_longer_than_a_text():
    assert [text_bucket(n) for n in (0, 1, 4, 5, 32, 33, 64, 65, 511, 513)] == [8, 8, 8, 8, 32, 40, 64, 80, 512, 640]
    assert all(n <= text_bucket(n) <= max(n + 3, 1.25 * n, 8) for n in range(1, 3000))
    assert len({text_bucket(n) for n in range(513)}) == 23


def test_no_bucket_is_longer_than_an_encoder_has_positions():
    for bucket_of in (token_bucket, text_bucket):
        assert [bucket_of(n, 38) for n in (3, 33, 38, 41)] == [bucket_of(3), 38, 38, 41]
    lengths = np.array([3, 9, 37, 38, 38])
    assert group_lengths(lengths, 0, 38).tolist() == [4, 12, 38, 38, 38]
    assert group_lengths(lengths, 10**6, 38).tolist() == [38] * 5


@pytest.mark.parametrize("cost", [0, 1, 30, 300, 10**6])
def test_groups_are_those_that_cost_least(cost):
    rng = np.random.default_rng(cost)
    for _ in range(20):
        lengths = rng.integers(1, 33, size=rng.integers(1, 60))
        sizes = np.unique(-(-lengths // 4) * 4)

        def price(padded: np.ndarray) -> int:
            return padded.sum() + cost * len(np.unique(padded))

        # Every way to cut the sizes into groups.
        least = min(
            price(ends[np.searchsorted(ends, lengths)])
            for n in range(len(sizes))
            for chosen in combinations(sizes[:-1], n)
            for ends in [np.array([*chosen, sizes[-1]])]
        )
        padded = group_lengths(lengths, cost)
        assert (padded >= lengths).all()
        assert price(padded) == least
    if cost == 0:
        np.testing.assert_array_equal(padded, -(-lengths // 4) * 4)
    if cost == 10**6:
        assert len(set(padded)) == 1
