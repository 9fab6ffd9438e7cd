"""Evaluation of a few users by hand, and of popularity on MovieLens-100k."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from llm4rec_jax.baselines.popularity import Popularity
from llm4rec_jax.data import sources
from llm4rec_jax.data.interactions import Dataset, Interactions
from llm4rec_jax.data.splits.protocols import leave_one_out
from llm4rec_jax.data.splits.split import Sequences, Split
from llm4rec_jax.evaluation.evaluate import OrderMatters, check_order, evaluate
from llm4rec_jax.inference.scorer import Scorer
from llm4rec_jax.sharding import make_mesh


def dot(params: None, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
    return user_embeddings @ item_embeddings.T


class Table(Scorer):
    """A scorer that reads its scores [U, I] from a table."""

    def __init__(self, scores: list[list[float]]) -> None:
        self._scores = jnp.asarray(scores, jnp.float32)
        self.histories: list[list[int]] = []

    def item_embeddings(self) -> jax.Array:
        return jnp.eye(self._scores.shape[1])

    def user_embeddings(self, item_embeddings: jax.Array, history: Sequences, users: np.ndarray) -> jax.Array:
        self.histories = [history.of(user).tolist() for user in range(len(self._scores))]
        return self._scores[users]

    @property
    def head(self) -> tuple[Callable[..., jax.Array], None]:
        return dot, None


# c is too short to be tested, and d returns to its first item.
SEQUENCES = {"a": [0, 1, 2], "b": [3, 4, 0], "c": [1, 2], "d": [0, 1, 0]}
SCORES = [[9.0, 9, 5, 7, 5], [4, 1, 2, 9, 9], [0, 0, 0, 0, 0], [1, 5, 3, 0, 0]]


@pytest.fixture
def split() -> Split:
    items = [item for sequence in SEQUENCES.values() for item in sequence]
    users = np.repeat(np.arange(len(SEQUENCES)), [len(sequence) for sequence in SEQUENCES.values()])
    return leave_one_out(
        Dataset(
            "by hand",
            Interactions(users.astype(np.int32), np.array(items, np.int32)),
            pl.DataFrame({"item_id": list("vwxyz")}),
            pl.DataFrame({"user_id": list(SEQUENCES)}),
        ),
        order="input",
    )


@pytest.mark.parametrize("devices", [1, 8])
def test_a_test_by_hand(split, devices):
    scorer = Table(SCORES)
    mesh = make_mesh(devices=jax.devices()[:devices])
    found = evaluate(scorer, split, "test", mesh=mesh, ks=(1, 2, 3))
    assert scorer.histories == [[0, 1], [3, 4], [1, 2], [0, 1]]
    # a: item 3 is better and item 4 as good; b: the best of what is left; d: item 2 is better, item 1 is masked.
    assert found.per_user["user_id"].to_list() == ["a", "b", "d"]
    assert found.per_user["targets"].to_list() == [1, 1, 1]
    # Items 0 … 4 have 2, 1, 1, 1, 0 training interactions.
    assert found.per_user["history"].to_list() == [2, 2, 2]
    assert found.per_user["target_popularity"].to_list() == [1, 2, 2]
    assert found.per_user["mean_rank"].to_list() == [3, 1, 2]
    assert found.per_user["hr@2"].to_list() == [0, 1, 1]
    assert found.per_user["auc"].to_list() == pytest.approx([0.25, 1, 2 / 3])
    expected = {
        "hr@1": 1 / 3,
        "hr@2": 2 / 3,
        "hr@3": 1,
        "ndcg@2": (1 + 1 / np.log2(3)) / 3,
        "ndcg@3": (0.5 + 1 + 1 / np.log2(3)) / 3,
        "mrr": (1 / 3 + 1 + 1 / 2) / 3,
        "auc": (0.25 + 1 + 2 / 3) / 3,
        "mean_rank": 2,
        "users": 3,
        "users_skipped": 1,
        "repeated_targets": 1,
    }
    assert {name: found.summary[name] for name in expected} == pytest.approx(expected)
    assert "coverage@3" not in found.summary


def test_a_validation_by_hand(split):
    scorer = Table(SCORES)
    found = evaluate(scorer, split, "validation", mesh=make_mesh(), ks=(1,))
    assert scorer.histories == [[0], [3], [1, 2], [0]]
    assert found.per_user["mean_rank"].to_list() == [1, 1, 1]
    assert found.summary["repeated_targets"] == 0


def test_lists_by_hand(split):
    found = evaluate(Table(SCORES), split, "test", mesh=make_mesh(), ks=(1, 2), beyond_accuracy=True).summary
    # Lists [3, 2], [0, 2], [2, 0]; items 0 … 4 have 2, 1, 1, 1, 0 training interactions.
    once, twice = np.log2(5), np.log2(5 / 2)
    expected = {
        "coverage@2": 3 / 5,
        "gini@2": (-4 * 0 - 2 * 0 + 0 * 1 + 2 * 2 + 4 * 3) / (5 * 6),
        "novelty@2": (2 * once + 2 * (once + twice)) / 6,
        "mean_popularity@2": (1 + 1.5 + 1.5) / 3,
        "diversity@2": 1,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("phase", "hr", "ndcg"), [("test", 0.0838, 0.0432), ("validation", 0.0732, 0.0338)])
def test_popularity_on_movielens(phase, hr, ndcg):
    found = evaluate(Popularity(split := leave_one_out(sources.load("movielens_100k"))), split, phase, mesh=make_mesh())
    assert round(found.summary["hr@10"], 4) == hr
    assert round(found.summary["ndcg@10"], 4) == ndcg
    assert found.summary["users"] == 943
    # The same by counting: one target a user.
    counts = np.bincount(split.training()[0].items, minlength=split.dataset.num_items)
    history, targets = split.history(phase), split.targets_of(phase)
    ranks = []
    for user in range(943):
        scores = counts.astype(float)
        scores[history.of(user)] = -1
        ranks.append((scores >= counts[targets.of(user)[0]]).sum())
    assert found.per_user["mean_rank"].to_list() == ranks


def test_lists_of_one_item_have_no_diversity(split):
    only = np.arange(5) == 2
    found = dataclasses.replace(split, test=split.test[:1], test_candidates=only)
    summary = evaluate(Table(SCORES), found, "test", mesh=make_mesh(), ks=(1, 3)).summary
    assert "diversity@3" not in summary
    assert summary["hr@1"] == 1.0


def test_users_to_whom_all_items_are_alike_are_counted(split):
    scores = [[9.0, 9, 5, 7, 5], [3] * 5, [0, 0, 0, 0, 0], [1, 5, 3, 0, 0]]
    found = evaluate(Table(scores), split, "test", mesh=make_mesh(), ks=(1,))
    # c has no target; of d's candidates, one is masked, and the others differ.
    assert found.summary["users_constant"] == 1
    assert evaluate(Table([[0.0] * 5] * 4), split, "test", mesh=make_mesh(), ks=(1,)).summary["users_constant"] == 3
    assert evaluate(Table(SCORES), split, "test", mesh=make_mesh(), ks=(1,)).summary["users_constant"] == 0


class Placed(Table):
    """Scores that depend on where an item stands: a head that adds the column."""

    @property
    def head(self):
        return (
            lambda _, user_embeddings, item_embeddings: (
                user_embeddings @ item_embeddings.T + jnp.arange(len(item_embeddings))
            ),
            None,
        )


class TestOrder:
    def test_ranks_and_ties_are_the_same_in_any_order(self, split):
        rng = np.random.default_rng(0)
        for seed in range(5):
            # Whole numbers, few of them: ties everywhere.
            check_order(Table(rng.integers(0, 3, (4, 5)).tolist()), split, "test", mesh=make_mesh(), seed=seed)

    def test_on_a_catalogue_of_several_tiles(self):
        rng = np.random.default_rng(1)
        users, items = 40, 2500
        data = Interactions(
            np.repeat(np.arange(users, dtype=np.int32), 5), rng.integers(0, items, 5 * users, dtype=np.int32),
            timestamp=np.arange(5 * users),
        )  # fmt: skip
        names = pl.DataFrame({"item_id": [f"i{n}" for n in range(items)]})
        many = leave_one_out(Dataset("many", data, names, pl.DataFrame({"user_id": [f"u{n}" for n in range(users)]})))

        class Vectors(Table):
            """Vectors that are not whole, every second item's the same as the one before."""

            def __init__(self):
                self._scores = jnp.asarray(rng.normal(size=(users, 16)), jnp.float32)
                self._items = jnp.repeat(jnp.asarray(rng.normal(size=(items // 2, 16)), jnp.float32), 2, axis=0)

            def item_embeddings(self):
                return self._items

        check_order(Vectors(), many, "test", mesh=make_mesh())

    def test_a_score_of_the_place_is_caught(self, split):
        with pytest.raises(OrderMatters, match=r"of 3 test targets rank otherwise .* item '[vwxyz]'"):
            check_order(Placed(SCORES), split, "test", mesh=make_mesh())


def test_new_and_repeated_targets_are_reported_apart(split):
    # By hand above: a and b have new targets at ranks 3 and 1, d the repeated item 0 at rank 2.
    found = evaluate(Table(SCORES), split, "test", mesh=make_mesh(), ks=(1, 2)).summary
    assert (found["users_new"], found["users_repeat"], found["repeated_targets"]) == (2, 1, 1)
    assert (found["new/mean_rank"], found["new/hr@1"], found["repeat/mean_rank"], found["repeat/hr@2"]) == (
        2,
        0.5,
        2,
        1,
    )
    validation = evaluate(Table(SCORES), split, "validation", mesh=make_mesh(), ks=(1,)).summary
    assert not [name for name in validation if "/" in name or name in ("users_new", "users_repeat")]


def test_repeated_targets_can_be_left_out(split):
    found = evaluate(Table(SCORES), split, "test", mesh=make_mesh(), ks=(1,), repeats="drop")
    assert found.per_user["user_id"].to_list() == ["a", "b"]
    assert (found.summary["users"], found.summary["users_skipped"], found.summary["repeated_targets"]) == (2, 2, 1)
    assert found.summary["mean_rank"] == 2


def test_the_history_can_be_ranked_too(split):
    found = evaluate(Table(SCORES), split, "test", mesh=make_mesh(), ks=(1,), repeats="unmask_history")
    # a: items 0, 1 and 3 are better and item 4 as good; b: 3 and 4 are better; d: 1 and 2 are better.
    assert found.per_user["mean_rank"].to_list() == [5, 3, 3]


def test_an_item_twice_among_the_targets_counts_once():
    data = Dataset(
        "twice",
        Interactions(np.array([0, 0, 0, 0], np.int32), np.array([1, 0, 0, 2], np.int32)),
        pl.DataFrame({"item_id": ["a", "b", "c", "d"]}),
        pl.DataFrame({"user_id": ["u"]}),
    )
    rows, mask = np.arange(4), np.ones(4, bool)
    split = Split(data, rows[:1], rows[:0], rows[1:], mask[:1], mask, mask, mask, "by hand", "input")
    found = evaluate(Table([[4.0, 0, 3, 1]]), split, "test", mesh=make_mesh(), ks=(1, 2))
    assert (found.summary["duplicate_targets"], found.per_user["targets"].to_list()) == (1, [2])
    for name in ("precision@1", "precision@2", "recall@2", "ndcg@2", "ap@2", "auc"):
        assert found.summary[name] == 1, name
    assert found.summary["recall@1"] == 0.5


def test_items_without_interactions_can_be_left_out(split):
    # Items 0 … 4 have 4, 3, 2, 1, 1 interactions, of which 2, 1, 1, 1, 0 are in training.
    observed = evaluate(Table(SCORES), split, "test", mesh=make_mesh(), ks=(1,), candidates="observed")
    assert observed.summary["mean_rank"] == 2
    trained = evaluate(Table(SCORES), split, "test", mesh=make_mesh(), ks=(1,), candidates="trained")
    # a: item 4, as good as the target, is not ranked any more.
    assert trained.per_user["mean_rank"].to_list() == [2, 1, 2]
    assert "untrained_targets" not in trained.summary


@pytest.mark.parametrize("option", ["repeats", "candidates"])
def test_an_unknown_option_names_the_choices(split, option):
    with pytest.raises(ValueError, match=r"unknown .*'al'.*Choose from: "):
        evaluate(Table(SCORES), split, "test", mesh=make_mesh(), **{option: "al"})
