"""Closed-form baselines against scikit-learn and against sums written out."""

import numpy as np
import polars as pl
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity

from llm4rec_jax.baselines import BASELINES
from llm4rec_jax.data.interactions import Dataset, Interactions
from llm4rec_jax.data.splits.protocols import leave_one_out
from llm4rec_jax.evaluation.evaluate import evaluate
from llm4rec_jax.sharding import make_mesh

USERS, ITEMS = 30, 20
TEXTS = [" ".join(f"word{(3 * i + j * j) % 11}" for j in range(1 + i % 5)) for i in range(ITEMS)]


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 12, USERS)
    items = np.concatenate([rng.choice(ITEMS, n, replace=False, p=_skewed()) for n in lengths])
    return leave_one_out(
        Dataset(
            "drawn",
            Interactions(np.repeat(np.arange(USERS), lengths).astype(np.int32), items.astype(np.int32)),
            pl.DataFrame({"item_id": [f"i{i}" for i in range(ITEMS)]}),
            pl.DataFrame({"user_id": [f"u{u}" for u in range(USERS)]}),
        ),
        order="input",
    )


def _skewed():
    weights = 1 / np.arange(1, ITEMS + 1)
    return weights / weights.sum()


def dense(sequences):
    matrix = np.zeros((USERS, ITEMS))
    for user in range(USERS):
        matrix[user, sequences.of(user)] = 1
    return matrix


def scores(scorer, history):
    item_embeddings = scorer.item_embeddings()
    pairs, params = scorer.head
    return np.asarray(
        pairs(params, scorer.user_embeddings(item_embeddings, history, np.arange(USERS)), item_embeddings)
    )


def test_ease_is_a_ridge_regression_of_each_item_on_the_others(split):
    train, history = dense(split.training()[0]), dense(split.history("test"))
    expected = np.zeros((USERS, ITEMS))
    for item in range(ITEMS):
        others = np.arange(ITEMS) != item
        ridge = Ridge(alpha=3.0, fit_intercept=False).fit(train[:, others], train[:, item])
        expected[:, item] = history[:, others] @ ridge.coef_
    found = scores(BASELINES.build("ease", split, None, 0, l2=3.0), split.history("test"))
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(("k", "shrink"), [(3, 0.0), (5, 2.0), (100, 0.0)])
def test_item_knn(split, k, shrink):
    train, history = dense(split.training()[0]), dense(split.history("test"))
    similarity = cosine_similarity(train.T)
    if shrink:
        norm = np.sqrt(train.sum(0))
        similarity = train.T @ train / (np.outer(norm, norm) + shrink)
    np.fill_diagonal(similarity, 0)
    for item in range(ITEMS):
        nearest = np.argsort(-similarity[item], kind="stable")[:k]
        similarity[item, np.setdiff1d(np.arange(ITEMS), nearest)] = 0
    found = scores(BASELINES.build("item_knn", split, None, 0, k=k, shrink=shrink), split.history("test"))
    np.testing.assert_allclose(found, history @ similarity.T, atol=1e-6)


@pytest.mark.parametrize(("k", "shrink"), [(3, 0.0), (5, 2.0), (100, 0.0)])
def test_user_knn(split, k, shrink):
    train, history = dense(split.training()[0]), dense(split.history("test"))
    expected = np.zeros((USERS, ITEMS))
    for user in range(USERS):
        norms = np.sqrt(history[user].sum()) * np.sqrt(train.sum(1))
        similarity = train @ history[user] / (norms + shrink)
        similarity[user] = 0
        for neighbour in np.argsort(-similarity, kind="stable")[:k]:
            expected[user] += similarity[neighbour] * train[neighbour]
    found = scores(BASELINES.build("user_knn", split, None, 0, k=k, shrink=shrink), split.history("test"))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_tfidf_is_the_mean_cosine_with_the_history(split):
    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(TEXTS)
    history = dense(split.history("test"))
    expected = history @ cosine_similarity(vectors) / history.sum(1, keepdims=True)
    np.testing.assert_allclose(
        scores(BASELINES.build("tfidf", split, TEXTS, 0), split.history("test")), expected, atol=1e-6
    )


def test_popularity_counts_training_or_everything(split):
    data = split.dataset.interactions
    for counts, rows in (("training", split.train), ("all", np.arange(len(data)))):
        found = scores(BASELINES.build("popularity", split, None, 0, counts=counts), split.history("test"))
        np.testing.assert_array_equal(found, np.tile(np.bincount(data.item[rows], minlength=ITEMS), (USERS, 1)))


def test_popularity_may_break_ties_by_the_order_of_items(split):
    counts = np.bincount(split.training()[0].items, minlength=ITEMS)
    (found,) = scores(BASELINES.build("popularity", split, None, 0, ties="first"), split.history("test"))[:1]
    assert np.argsort(-found).tolist() == sorted(range(ITEMS), key=lambda item: (-counts[item], item))


def test_random_scores_are_a_function_of_seed_and_user(split):
    first, again, other = (
        scores(BASELINES.build("random", split, None, seed), split.history("test")) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any()
    assert abs(first.mean()) < 4 / np.sqrt(first.size)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_baseline_is_evaluated(split, name):
    found = evaluate(BASELINES.build(name, split, TEXTS, 0), split, "test", mesh=make_mesh(), beyond_accuracy=True)
    assert found.summary["users"] == USERS
    assert 0 < found.summary["mrr"] < 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ease", {"l2": 0.0}, "l2 is 0.0, must be positive"),
        ("item_knn", {"k": 0}, "must be at least 1 neighbour"),
        ("user_knn", {"shrink": -1.0}, "must not be negative"),
        ("popularity", {"counts": "test"}, "must be 'training' or 'all'"),
        ("popularity", {"ties": "last"}, "must be 'shared' or 'first'"),
        ("item_knn", {"K": 10}, "Choose from: k, shrink"),
        ("tfidf", {}, "reads the items' texts"),
    ],
)
def test_what_cannot_be_is_refused(split, name, options, message):
    def score():
        return scores(BASELINES.build(name, split, None, 0, **options), split.history("test"))

    with pytest.raises(ValueError, match=message):
        score()
