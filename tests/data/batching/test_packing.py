"""Texts in rows: all there, apart, and with little padding."""

import numpy as np
import pytest

from llm4rec_jax.data.batching.packing import pack, packed_rows, row_length
from llm4rec_jax.data.features.tokens import Tokens


def texts(lengths: np.ndarray) -> Tokens:
    real = np.arange(max(lengths.max(), 1)) < lengths[:, None]
    return Tokens(np.where(real, np.arange(1, 1 + real.size).reshape(real.shape), 0).astype(np.int32), lengths)


@pytest.mark.parametrize("seed", range(5))
def test_every_text_has_a_place_of_its_own(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 20, rng.integers(1, 60))
    tokens, packing = texts(lengths), pack(lengths, 24)
    ids, numbers = packed_rows(tokens, packing)
    assert ids.shape == numbers.shape == (packing.rows, 24)
    for i, n in enumerate(lengths):
        at = packing.row[i], slice(packing.start[i], packing.start[i] + n)
        np.testing.assert_array_equal(ids[at], tokens.ids[i, :n])
        assert (numbers[at] == packing.number[i]).all()
    assert (numbers > 0).sum() == lengths.sum()
    assert packing.most == packing.number.max() <= 24
    # Numbers ascend along a row, and are 0 only where no token is.
    assert all((np.diff(row[row > 0]) >= 0).all() for row in numbers)
    np.testing.assert_array_equal(ids > 0, numbers > 0)


def test_rows_are_as_few_as_can_be():
    assert pack(np.array([9, 1, 8, 2, 7, 3, 6, 4, 5, 5]), 10).rows == 5
    lengths = np.random.default_rng(0).lognormal(2.2, 0.4, 10_000).astype(int).clip(2, 64)
    assert lengths.sum() / (pack(lengths, 64).rows * 64) > 0.99


def test_rows_are_as_long_as_the_longest_text_needs():
    assert [row_length(np.array([4, n])) for n in (1, 64, 65, 513)] == [64, 64, 80, 640]
    assert [row_length(np.array([4, n]), most=48) for n in (1, 48)] == [48, 48]
    with pytest.raises(ValueError, match="a text of 25 tokens does not fit into a row of 24: give longer rows"):
        pack(np.array([3, 25]), 24)
