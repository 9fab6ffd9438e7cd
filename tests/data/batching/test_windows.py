"""Examples beside those that plain Python cuts from the same sequences."""

import numpy as np
import pytest

from llm4rec_jax.data.batching.windows import Examples, histories, single_targets, windows
from llm4rec_jax.data.splits.split import Sequences


def random_sequences(rng: np.random.Generator) -> Sequences:
    lengths = rng.integers(0, 14, 12)
    return Sequences(np.r_[0, np.cumsum(lengths)], rng.integers(9, size=lengths.sum(), dtype=np.int32), None, None)


def triples(examples: Examples) -> list[tuple[int, int, int]]:
    return [tuple(map(int, row)) for row in zip(*examples, strict=True)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("history", [1, 2, 3, 5, 50])
def test_windows_and_single_targets_are_those_of_plain_python(history, seed):
    sequences = random_sequences(np.random.default_rng(seed))
    cut, single = [], []
    for user, (first, end) in enumerate(zip(sequences.offsets, sequences.offsets[1:], strict=False)):
        stop = int(end) - 1
        while stop > first:
            cut.append((user, max(int(first), stop - history), stop))
            stop -= history
        single += [(user, max(int(first), t - history), t) for t in range(int(first) + 1, int(end))]
    assert triples(windows(sequences, history)) == cut
    assert triples(single_targets(sequences, history)) == single


def test_histories_are_the_last_items():
    sequences = random_sequences(np.random.default_rng(2))
    users = np.array([5, 0, 11, 5])
    items, mask = histories(sequences, users, 4)
    for user, row, kept in zip(users, items, mask, strict=True):
        assert row[kept].tolist() == sequences.of(user)[-4:].tolist()
        assert kept.tolist() == sorted(kept, reverse=True)
        assert not row[~kept].any()
    items, mask = histories(Sequences(np.zeros(3, np.int64), np.zeros(0, np.int32), None, None), [0, 1], 4)
    assert items.shape == (2, 4)
    assert not mask.any()
