"""The difference of our popularity row to RecBole's: its counts saturate.

RecBole 1.2.1 with its defaults prints HR@10 .0710 and NDCG@10 .0354 for `Pop` on MovieLens-100k (leave-one-out by time,
full ranking, seen items masked, test set). Its counts are not counts. `cnt[item] = cnt[item] + 1` with repeated indices
adds 1 once, so an item is counted at most once in a batch of 1024 interactions, and each interaction brings a uniformly
drawn unseen item that is counted as well. Popular items are in nearly every one of the 96 batches, so they come to the
same few counts and tie; which of them is recommended is then a matter of chance. Exact counts, ours, tell them apart.
"""

import numpy as np
import pytest

from llm4rec_jax.data import sources
from llm4rec_jax.data.splits.protocols import leave_one_out
from llm4rec_jax.data.splits.split import Split

BATCH = 1024


@pytest.fixture(scope="module")
def split() -> Split:
    return leave_one_out(sources.load("movielens_100k"))


def recbole_counts(split: Split, rng: np.random.Generator) -> np.ndarray:
    data, num_items = split.dataset.interactions, split.dataset.num_items
    seen = np.zeros((split.dataset.num_users, num_items), bool)
    seen[data.user[split.train], data.item[split.train]] = True
    rows, counts = rng.permutation(split.train), np.zeros(num_items)
    for start in range(0, len(rows), BATCH):
        users, items = data.user[rows[start : start + BATCH]], data.item[rows[start : start + BATCH]]
        negatives = rng.integers(num_items, size=len(users))
        while (again := seen[users, negatives]).any():
            negatives[again] = rng.integers(num_items, size=again.sum())
        counts[np.concatenate([items, negatives])] += 1  # Once, however often an item is in the index.
    return counts


def accuracy(split: Split, counts: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """HR@10 and NDCG@10 on the test set, ties broken at random."""
    history, targets = split.history("test"), split.targets_of("test").items
    scores = np.tile(counts.astype(float), (len(targets), 1))
    scores[np.repeat(np.arange(len(targets)), np.diff(history.offsets)), history.items] = -1
    own = counts[targets][:, None]
    rank = 1 + (scores > own).sum(1) + rng.integers((scores == own).sum(1))
    return float((rank <= 10).mean()), float(np.where(rank <= 10, 1 / np.log2(rank + 1), 0).mean())


def test_recboles_rule_gives_recboles_row(split):
    figures = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        counts = recbole_counts(split, rng)
        assert counts.max() == np.ceil(len(split.train) / BATCH)
        figures.append(accuracy(split, counts, rng))
    hr, ndcg = np.mean(figures, axis=0)
    assert hr == pytest.approx(0.071, abs=0.004)
    assert ndcg == pytest.approx(0.0345, abs=0.003)

    exact = np.bincount(split.dataset.interactions.item[split.train], minlength=split.dataset.num_items)
    exact_hr, exact_ndcg = accuracy(split, exact, np.random.default_rng(0))
    assert exact_hr > hr + 0.008
    assert exact_ndcg > ndcg + 0.005
