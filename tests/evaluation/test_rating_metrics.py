import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.labeled import LabeledData, LabeledExamples
from llm4rec_jax.evaluation import metrics
from llm4rec_jax.evaluation import rating_metrics as pointwise


def questions(n: int = 60, users: int = 6, seed: int = 0):
    """Scores [n] with ties, labels [n], users [n]."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, n)
    labels = (rng.random(n) < 0.2 + 0.1 * user).astype(float)
    return np.round(rng.normal(labels, 1.5), 1), labels, user


def test_weighted_auc_is_scikit_learns():
    scores, labels, _ = questions()
    weights = np.random.default_rng(1).integers(0, 4, (20, 60)).astype(float)
    ours = pointwise.weighted_auc(scores, labels, weights)
    theirs = [roc_auc_score(labels, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert np.ptp(ours) > 0.01


def test_weighted_auc_counts_ties_as_half_and_marks_a_missing_class():
    found = pointwise.weighted_auc([1, 1, 0], [1, 0, 1], [[1, 1, 0], [1, 2, 1], [1, 0, 1]])
    np.testing.assert_array_equal(found, [0.5, 0.25, np.nan])


class TestEvaluate:
    def data(self) -> LabeledData:
        _, labels, user = questions()
        n = len(labels)
        rows = LabeledExamples(
            user=user.astype(np.int32),
            history=np.zeros((n, 1), np.int32),
            liked=np.zeros((n, 1), bool),
            mask=np.ones((n, 1), bool),
            target=np.arange(n, dtype=np.int32),
            label=labels.astype(np.float32),
        )
        items = pl.DataFrame({"item_id": [f"i{i}" for i in range(n)]})
        users = pl.DataFrame({"user_id": [f"u{i}" for i in range(6)]})
        return LabeledData("toy", items, users, rows, rows, rows, "made")

    def test_metrics(self):
        scores, labels, user = questions()
        data = self.data()
        summary, per_row = pointwise.evaluate(scores, data, data.test)
        assert summary["auc"] == pytest.approx(roc_auc_score(labels, scores), rel=1e-12)
        assert summary["gauc"] == metrics.gauc(scores, labels, user).value
        assert summary["log_loss"] == pytest.approx(log_loss(labels, 1 / (1 + np.exp(-scores))), rel=1e-9)
        assert summary["accuracy"] == np.mean((scores > 0) == labels)
        assert (summary["rows"], summary["users"], summary["users_skipped"]) == (60, 6, 0)
        assert per_row.columns == ["user_id", "item_id", "label", "score"]
        assert per_row["score"].to_list() == scores.tolist()
        assert per_row["user_id"].to_list() == [f"u{u}" for u in user]
        assert per_row["item_id"][7] == "i7"

    def test_log_loss_of_large_logits(self):
        data = self.data()
        summary, _ = pointwise.evaluate(np.where(data.test.label == 1, -1e4, 1e4), data, data.test)
        assert summary["log_loss"] == 1e4

    @pytest.mark.parametrize(("scores", "words"), [(np.zeros(3), "one length"), (np.full(60, np.nan), "finite")])
    def test_misuse(self, scores, words):
        data = self.data()
        with pytest.raises(ValueError, match=words):
            pointwise.evaluate(scores, data, data.test)


def naive(scores: np.ndarray, labels: np.ndarray, users: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The bootstrap in a loop: rows are repeated as often as their user is drawn."""
    names = np.unique(users)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    found = []
    for count in counts:
        rows = np.concatenate([np.tile(np.flatnonzero(users == name), c) for name, c in zip(names, count, strict=True)])
        found.append(np.mean([roc_auc_score(labels[rows], row[rows]) for row in np.atleast_2d(scores)]))
    return np.array(found)


class TestIntervals:
    def test_interval_is_the_loops(self):
        scores, labels, user = questions()
        both = np.stack([scores, -np.abs(scores)])
        found = pointwise.clustered_interval(both, labels, user, resamples=100, seed=3)
        expected = naive(both, labels, user, 100, 3)
        assert found.mean == pytest.approx(np.mean([roc_auc_score(labels, row) for row in both]))
        np.testing.assert_allclose((found.low, found.high), np.percentile(expected, (2.5, 97.5)), rtol=1e-12)

    def test_difference_pairs_the_resamples(self):
        scores, labels, user = questions()
        other = np.stack([questions(seed=seed)[0] for seed in (7, 8)])
        found = pointwise.clustered_difference(scores, other, labels, user, resamples=100, seed=3)
        expected = naive(scores, labels, user, 100, 3) - naive(other, labels, user, 100, 3)
        np.testing.assert_allclose(found.difference[1:], np.percentile(expected, (2.5, 97.5)), rtol=1e-10)
        tail = min((expected <= 0).sum(), (expected >= 0).sum())
        assert found.p == pytest.approx(min(1, 2 * (tail + 1) / 101))

    def test_a_model_does_not_differ_from_itself(self):
        scores, labels, user = questions()
        found = pointwise.clustered_difference(scores, scores * 2, labels, user, resamples=50)
        assert found.difference == (0, 0, 0)
        assert found.p == 1

    def test_blocks_do_not_change_the_draws(self, monkeypatch):
        scores, labels, user = questions()
        whole = pointwise.clustered_interval(scores, labels, user, resamples=100)
        monkeypatch.setattr(pointwise, "_BLOCK", 60 * 7)
        assert pointwise.clustered_interval(scores, labels, user, resamples=100) == whole

    def test_a_resample_without_both_classes_is_drawn_again(self):
        # Two users of one class each: half of the draws have one user twice.
        labels, user = np.array([1, 1, 0, 0]), np.array(["a", "a", "b", "b"])
        found = pointwise.clustered_interval([3.0, 1.0, 2.0, 0.0], labels, user, resamples=50)
        assert found == (0.75, 0.75, 0.75)

    def test_clusters_widen_the_interval(self):
        # Twenty copies of each question are no more evidence if their user is resampled whole.
        scores, labels, user = questions()
        once = pointwise.clustered_interval(scores, labels, user)
        often = pointwise.clustered_interval(*(np.tile(column, 20) for column in (scores, labels, user)))
        assert often.low == pytest.approx(once.low)
        alone = pointwise.clustered_interval(np.tile(scores, 20), np.tile(labels, 20), np.arange(1200))
        assert alone.high - alone.low < (often.high - often.low) / 2

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"labels": np.ones(60)}, "both classes"),
            ({"labels": np.full(60, 2)}, "neither 0 nor 1"),
            ({"users": np.zeros(3)}, r"users \(3,\)"),
            ({"scores": np.zeros((2, 3))}, "one length"),
            ({"scores": np.zeros((0, 60))}, "no scores"),
            ({"resamples": 0}, "resamples is 0"),
        ],
    )
    def test_misuse(self, change, words):
        scores, labels, users = questions()
        with pytest.raises(ValueError, match=words):
            pointwise.clustered_interval(**({"scores": scores, "labels": labels, "users": users} | change))


class TestSamples:
    def frame(self, **changes) -> pl.DataFrame:
        columns = {"user_id": ["a", "b"], "item_id": ["x", "y"], "label": [1.0, 0.0], "score": [0.5, 0.25]}
        return pl.DataFrame(columns | changes)

    def test_stacks(self):
        scores, labels, users = pointwise.samples([self.frame(), self.frame(score=[1.0, 2.0])])
        assert scores.tolist() == [[0.5, 0.25], [1.0, 2.0]]
        assert labels.tolist() == [1, 0]
        assert users.tolist() == ["a", "b"]

    def test_misuse(self):
        with pytest.raises(DataError, match="results 1 are of other questions"):
            pointwise.samples([self.frame(), self.frame(item_id=["x", "z"])])
        with pytest.raises(DataError, match="results 0 lack score"):
            pointwise.samples([self.frame().drop("score")])
        with pytest.raises(DataError, match="no per-row results"):
            pointwise.samples([])
