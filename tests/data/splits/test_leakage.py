import dataclasses
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from llm4rec_jax.baselines.popularity import Popularity
from llm4rec_jax.data.batching.builder import BatchOptions, training_batches
from llm4rec_jax.data.interactions import Interactions
from llm4rec_jax.data.splits import leakage as leaks
from llm4rec_jax.data.splits.leakage import Leak, assert_no_leakage, assert_within_users
from llm4rec_jax.data.splits.protocols import SPLITS
from llm4rec_jax.data.splits.split import Phase, Sequences, Split
from llm4rec_jax.evaluation.evaluate import evaluate
from llm4rec_jax.sharding import make_mesh
from tests.data.splits.test_protocols import random_dataset
from tests.helpers import tiny


def moved_into(history: Sequences, user: int, item: int) -> Sequences:
    """The history with one item more at the end of a user's."""
    at = history.offsets[user + 1]
    offsets = history.offsets + (np.arange(len(history.offsets)) > user)
    return Sequences(offsets, np.insert(history.items, at, item), None, None)


@pytest.mark.parametrize("name", sorted(set(SPLITS)))
@pytest.mark.parametrize("seed", range(3))
def test_splits_leak_nothing_and_any_target_in_a_history_is_found(name, seed):
    # Users return to items, so that pairs stand on both sides.
    dataset = random_dataset(seed, items=14)
    if name == "given":
        parts = np.random.default_rng(seed).integers(3, size=len(dataset.interactions)).astype(np.int8)
        dataset = replace(dataset, interactions=replace(dataset.interactions, part=parts))
    split: Split = SPLITS.build(name, dataset)
    for phase in ("validation", "test"):
        history, targets = split.history(phase), split.targets_of(phase)
        assert_no_leakage(split.dataset, history, [targets], "the history")
        assert_no_leakage(split.dataset, split.training()[0], [targets], "the training sequence")
        data = split.dataset.interactions
        for user in np.flatnonzero(np.diff(targets.offsets)):
            item = int(targets.of(user)[0])
            # Where the user returns to it later than this history, that one may stand for the target.
            held = int((history.of(user) == item).sum() + (targets.of(user) == item).sum())
            if held < ((data.user == user) & (data.item == item)).sum():
                continue
            with pytest.raises(Leak) as error:
                assert_no_leakage(split.dataset, moved_into(history, user, item), [targets], f"the {phase} history")
            assert str(error.value).startswith(f"the {phase} history of user 'u{user}' holds item 'i{item}'")


def random_sequences(rng: np.random.Generator, data: Interactions, users: int, size: int) -> Sequences:
    """Draws `size` interactions one by one; the same may be drawn again."""
    rows = rng.integers(len(data), size=size)
    rows = rows[np.argsort(data.user[rows], kind="stable")]
    offsets = np.searchsorted(data.user[rows], np.arange(users + 1))
    return Sequences(offsets, data.item[rows], None, None)


def counted(sequences: Sequences) -> Counter[tuple[int, int]]:
    return Counter((u, int(i)) for u in range(len(sequences.offsets) - 1) for i in sequences.of(u))


@pytest.mark.parametrize(
    ("users", "items", "size", "read", "predicted"),
    [(40, 30, 2000, 900, 40), (3000, 200, 60_000, 20_000, 3), (3000, 5000, 60_000, 20_000, 4000), (1, 9, 50, 9, 0)],
)
def test_counts_are_those_of_plain_loops(users, items, size, read, predicted, monkeypatch):
    # Some of the pairs on both sides leak and others do not. Parts end within users, as those of large data do.
    monkeypatch.setattr(leaks, "_AT_ONCE", 1000)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        dataset = random_dataset(seed, users=users, items=items, size=size)
        data = dataset.interactions
        history, *targets = (random_sequences(rng, data, users, n) for n in (read, predicted, predicted // 2))
        there = Counter(zip(data.user.tolist(), data.item.tolist(), strict=True))
        one, other = counted(history), sum(map(counted, targets), Counter())
        leaked = sorted(pair for pair in other if one[pair] and one[pair] + other[pair] > there[pair])
        if not leaked:
            assert_no_leakage(dataset, history, targets, "the history")
            continue
        with pytest.raises(Leak) as error:
            assert_no_leakage(dataset, history, targets, "the history")
        user, item = leaked[0]
        assert f"user 'u{user}' holds item 'i{item}'" in str(error.value)
        assert f"({len(leaked)} such pairs)" in str(error.value)


class Leaking(Split):
    """A split whose histories hold the targets."""

    def history(self, phase: Phase) -> Sequences:
        return self._all()

    def training(self):
        everything = self._all()
        return everything, np.ones(len(everything.items), bool)

    def _all(self) -> Sequences:
        data = self.dataset.interactions
        offsets = np.searchsorted(data.user, np.arange(self.dataset.num_users + 1))
        return Sequences(offsets, data.item, data.rating, data.timestamp)


@pytest.fixture(scope="module")
def leaking() -> Split:
    split = tiny.split()
    return Leaking(**{field.name: getattr(split, field.name) for field in dataclasses.fields(split)})


def test_training_on_a_target_is_refused_before_a_batch(leaking):
    with pytest.raises(Leak, match=r"the training sequence of user 'u0' holds item .* too good"):
        training_batches(leaking, BatchOptions(batch_size=8))


def test_evaluation_with_a_target_in_the_history_is_refused(leaking):
    with pytest.raises(Leak, match="the test history of user 'u0'"):
        evaluate(Popularity(leaking), leaking, "test", mesh=make_mesh())


def test_examples_of_two_users_or_backwards_are_refused():
    sequences = Sequences(np.array([0, 3, 5]), np.zeros(5, np.int32), None, None)
    user = np.array([0, 1])
    assert_within_users(sequences, user, np.array([0, 3]), np.array([2, 4]))
    for start, stop in (([0, 2], [2, 4]), ([0, 3], [3, 4]), ([0, 4], [2, 3])):
        with pytest.raises(Leak, match=r"training example [01] reads"):
            assert_within_users(sequences, user, np.array(start), np.array(stop))
