"""Metrics against values worked out by hand, against their definitions, and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from llm4rec_jax.evaluation import metrics
from llm4rec_jax.evaluation.metrics import evaluate_ranks, ranks
from llm4rec_jax.inference.ranks import Ranks


def stack(rows: list[Ranks]) -> Ranks:
    counts = [len(row.rank) for row in rows]
    return Ranks(
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([row.rank for row in rows]),
        np.concatenate([row.ties for row in rows]),
        np.concatenate([row.candidates for row in rows]),
    )


def random_case(seed: int, levels: int, users: int = 40, items: int = 30):
    """Draws scores [users, items] of `levels` distinct values, targets and masks; some users have no target."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=(users, items)).astype(float)
    targets, masked = [], np.zeros((users, items), bool)
    for user in range(users):
        order = rng.permutation(items)
        count = rng.integers(0, 7)
        targets.append(np.sort(order[:count]))
        masked[user, order[count : count + rng.integers(0, 9)]] = True
    return scores, targets, masked


def ranked(case) -> Ranks:
    return stack([ranks(s, t, m) for s, t, m in zip(*case, strict=True)])


def test_ranks_count_ties_against_the_model():
    # Better than item 1: item 0. Tied with it: items 2 and 3, of which 3 is masked.
    row = ranks([3.0, 2.0, 2.0, 2.0, 1.0], [1, 4], masked=[False, False, False, True, False])
    np.testing.assert_array_equal(row.rank, [3, 4])
    np.testing.assert_array_equal(row.ties, [1, 0])
    np.testing.assert_array_equal(row.candidates, [4])
    np.testing.assert_array_equal(row.offsets, [0, 2])


@pytest.mark.parametrize("levels", [1, 4, 10_000])
def test_ranks_follow_their_definition(levels):
    for scores, targets, masked in zip(*random_case(0, levels), strict=True):
        row = ranks(scores, targets, masked)
        for target, rank, ties in zip(targets, row.rank, row.ties, strict=True):
            others = (~masked) & (np.arange(len(scores)) != target)
            tied = int((scores[others] == scores[target]).sum())
            assert (rank, ties) == (1 + (scores[others] > scores[target]).sum() + tied, tied)


def test_constant_scores_rank_every_target_last():
    row = ranks(np.zeros(50), [3, 17])
    np.testing.assert_array_equal(row.rank, [50, 50])
    _, summary = evaluate_ranks(row)
    assert summary["hr@20"] == 0
    assert summary["auc"] == 0.5


def test_ranks_refuse_scores_that_are_not_finite_unless_masked():
    scores = np.array([1.0, np.nan, -np.inf, 2.0])
    with pytest.raises(ValueError, match="2 of 4 scores are not finite"):
        ranks(scores, [0])
    assert ranks(scores, [0], masked=[False, True, True, False]).rank == [2]
    with pytest.raises(ValueError, match="1 of 2 targets are masked"):
        ranks(np.arange(3.0), [0, 1], masked=[True, False, False])


def test_values_worked_out_by_hand():
    # User 0: targets at ranks 1, 3 and 12; user 1 has none; user 2: one target, second of four; ten candidates more.
    row = Ranks(np.array([0, 3, 3, 4]), np.array([3, 12, 1, 2]), np.zeros(4, int), np.array([14, 9, 4]))
    values, summary = evaluate_ranks(row, ks=(2, 5))
    np.testing.assert_array_equal(values["user"], [0, 2])
    ideal = 1 + 1 / np.log2(3)
    expected = {
        "hr@2": [1, 1],
        "recall@2": [1 / 3, 1],
        "precision@2": [1 / 2, 1 / 2],
        "precision@5": [2 / 5, 1 / 5],
        "ndcg@2": [1 / ideal, 1 / np.log2(3)],
        "ndcg@5": [1.5 / (ideal + 1 / 2), 1 / np.log2(3)],
        "rr@2": [1, 1 / 2],
        "ap@2": [1 / 3, 1 / 2],
        "ap_min@2": [1 / 2, 1 / 2],
        "ap@5": [(1 + 2 / 3) / 3, 1 / 2],
        "mrr": [1, 1 / 2],
        # User 0 has 33 pairs; the target at 3 loses one and the one at 12 loses nine.
        "auc": [23 / 33, 2 / 3],
        "mean_rank": [16 / 3, 2],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, err_msg=name)
        assert summary[name] == pytest.approx(np.mean(value))
    assert summary["gauc"] == pytest.approx((3 * 23 / 33 + 2 / 3) / 4)
    assert (summary["users"], summary["users_skipped"]) == (2, 1)


def test_values_under_ties_worked_out_by_hand():
    # Scores of items a..f are 5, 4, 4, 4, 2, 1; the targets b and c tie with d: both rank 4, with two ties each.
    row = ranks([5.0, 4.0, 4.0, 4.0, 2.0, 1.0], [1, 2])
    np.testing.assert_array_equal(row.rank, [4, 4])
    np.testing.assert_array_equal(row.ties, [2, 2])
    values, _ = evaluate_ranks(row, ks=(3, 4))
    assert values["hr@3"] == 0
    assert values["rr@4"] == 1 / 4
    # Both count as hits at rank 4: (2/4 + 2/4) / 2.
    assert values["ap@4"] == 1 / 2
    np.testing.assert_allclose(values["ndcg@4"], 2 / np.log2(5) / (1 + 1 / np.log2(3)))
    # Each target loses to a, ties with d and beats e and f: 2.5 of 4.
    assert values["auc"] == 2.5 / 4


@pytest.mark.parametrize("levels", [2, 6, 10_000])
def test_user_auc_matches_scikit_learn(levels):
    case = random_case(1, levels)
    values, summary = evaluate_ranks(ranked(case))
    expected, weights = [], []
    for scores, targets, masked in zip(*case, strict=True):
        if len(targets):
            labels = np.isin(np.arange(len(scores)), targets)
            expected.append(roc_auc_score(labels[~masked], scores[~masked]))
            weights.append(len(targets))
    np.testing.assert_allclose(values["auc"], expected, atol=1e-12)
    assert summary["gauc"] == pytest.approx(np.average(expected, weights=weights))


def test_user_auc_is_a_tie_where_all_candidates_are_targets():
    assert metrics.user_auc(ranks([2.0, 1.0], [0, 1])) == 0.5


def test_ndcg_matches_scikit_learn():
    case = random_case(2, 10**9)
    found = metrics.ndcg(ranked(case), 10)
    expected = [
        ndcg_score([np.isin(np.arange(len(s)), t)[~m]], [s[~m]], k=10) for s, t, m in zip(*case, strict=True) if len(t)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("levels", [3, 10_000])
def test_the_summary_does_not_depend_on_the_order_of_users(levels):
    case = random_case(3, levels)
    order = np.random.default_rng(0).permutation(len(case[0]))
    shuffled = (case[0][order], [case[1][user] for user in order], case[2][order])
    assert evaluate_ranks(ranked(case))[1] == evaluate_ranks(ranked(shuffled))[1]


def test_metrics_stay_within_their_bounds_under_ties():
    values, _ = evaluate_ranks(ranked(random_case(4, 2)), ks=(1, 3, 10))
    for name, value in values.items():
        assert np.isfinite(value).all(), name
        if name not in ("user", "mean_rank"):
            assert ((value >= 0) & (value <= 1)).all(), name


def test_ranks_that_cannot_be_are_refused():
    good = Ranks(np.array([0, 1]), np.array([2]), np.array([0]), np.array([3]))
    for change in ({"rank": np.array([0])}, {"rank": np.array([4])}, {"ties": np.array([2])}):
        with pytest.raises(ValueError, match="1 of 1 ranks"):
            evaluate_ranks(good._replace(**change))
    for change in ({"offsets": np.array([0, 2])}, {"candidates": np.array([3, 3])}, {"offsets": np.array([1, 1])}):
        with pytest.raises(ValueError, match="offsets"):
            evaluate_ranks(good._replace(**change))
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_ranks(good, ks=(0, 5))
    with pytest.raises(ValueError, match="none of 2 users"):
        evaluate_ranks(Ranks(np.zeros(3, int), np.zeros(0, int), np.zeros(0, int), np.array([3, 3])))


@pytest.mark.parametrize("levels", [3, 10_000])
def test_pointwise_auc_matches_scikit_learn(levels):
    rng = np.random.default_rng(5)
    scores, labels = rng.integers(levels, size=300) / 7, rng.integers(2, size=300)
    assert metrics.auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("levels", [3, 10_000])
def test_gauc_weights_users_by_positives_and_counts_those_it_skips(levels):
    rng = np.random.default_rng(6)
    users = rng.integers(20, size=200)
    scores, labels = rng.integers(levels, size=200) / 7, rng.integers(2, size=200)
    labels[users == 3] = 0
    labels[users == 4] = 1
    found = metrics.gauc(scores, labels, users)
    kept = [user for user in np.unique(users) if 0 < labels[users == user].mean() < 1]
    value = [roc_auc_score(labels[users == user], scores[users == user]) for user in kept]
    weights = [labels[users == user].sum() for user in kept]
    assert found.value == pytest.approx(np.average(value, weights=weights), abs=1e-12)
    assert (found.users, found.users_skipped) == (len(kept), len(np.unique(users)) - len(kept))
    assert found.users_skipped >= 2


def test_gauc_takes_user_names_and_handles_literal_ties():
    found = metrics.gauc([1.0, 1.0, 0.5, 2.0, 9.0], [1, 0, 0, 1, 1], ["a", "a", "a", "b", "c"])
    assert found == (0.75, 1, 2)


def test_rmse_and_mae():
    assert metrics.rmse([1.0, 2.0], [4.0, 6.0]) == pytest.approx(np.sqrt(12.5))
    assert metrics.mae([1.0, 2.0], [4.0, 6.0]) == 3.5


def test_pointwise_metrics_refuse_what_they_cannot_measure():
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        metrics.auc([np.nan, 1.0], [0, 1])
    with pytest.raises(ValueError, match="1 of 2 ratings are not finite"):
        metrics.rmse([1.0, 2.0], [np.inf, 1.0])
    with pytest.raises(ValueError, match="1 of 2 predictions are not finite"):
        metrics.mae([np.nan, 2.0], [2.0, 1.0])
    with pytest.raises(ValueError, match="1 of 2 labels are neither"):
        metrics.auc([0.0, 1.0], [0, 2])
    with pytest.raises(ValueError, match="both classes"):
        metrics.auc([0.0, 1.0], [1, 1])
    with pytest.raises(ValueError, match="both classes"):
        metrics.gauc([0.0, 1.0], [0, 1], [7, 8])
    with pytest.raises(ValueError, match="one length"):
        metrics.mae([0.0, 1.0], [0.0])
    with pytest.raises(ValueError, match="not empty"):
        metrics.rmse([], [])


LISTS = np.array([[0, 1], [0, 2], [0, -1], [-1, -1]])


def test_coverage_and_gini_of_exposure():
    assert metrics.coverage(LISTS, num_items=6) == 0.5
    # Exposures 0, 0, 0, 1, 1, 3 weighted by -5, -3, -1, 1, 3, 5.
    assert metrics.gini(LISTS, num_items=6) == pytest.approx(19 / 30)
    assert metrics.gini([[0, 1], [2, 3]], num_items=4) == 0
    assert metrics.gini([[2], [2]], num_items=4) == 0.75


def test_novelty_and_popularity_are_means_of_users():
    # Shares 1/2, 1/4 and 1/4; item 3 was never seen and counts as seen once.
    popularity = [4, 2, 2, 0]
    assert metrics.novelty(LISTS, popularity) == pytest.approx((1.5 + 1.5 + 1) / 3)
    assert metrics.novelty([[3]], popularity) == 3
    assert metrics.mean_popularity(LISTS, popularity) == pytest.approx((3 + 3 + 4) / 3)


def test_intra_list_diversity_is_one_less_the_mean_pairwise_cosine():
    vectors = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, 0.0]])
    assert metrics.intra_list_diversity([[0, 1, -1]], vectors) == pytest.approx(1)
    assert metrics.intra_list_diversity([[0, 1, 2]], vectors) == pytest.approx(1 - 2 * np.sqrt(0.5) / 3)
    assert metrics.intra_list_diversity([[2, 2], [2, -1]], vectors) == pytest.approx(0)
    assert metrics.intra_list_diversity([[0, 3]], vectors) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least two"):
        metrics.intra_list_diversity([[0, -1]], vectors)


def test_intra_list_diversity_follows_its_definition():
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(12, 5))
    lists = np.stack([rng.permutation(12)[:4] for _ in range(9)])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = [1 - np.mean([unit[a] @ unit[b] for a in row for b in row if a != b]) for row in lists]
    assert metrics.intra_list_diversity(lists, vectors) == pytest.approx(np.mean(expected))


def test_lists_out_of_range_or_empty_are_refused():
    with pytest.raises(ValueError, match="1 are not"):
        metrics.coverage([[0, 6]], num_items=6)
    with pytest.raises(ValueError, match="no item"):
        metrics.gini([[-1, -1]], num_items=6)
    with pytest.raises(ValueError, match="no item"):
        metrics.novelty([[-1]], [1, 2])
    with pytest.raises(ValueError, match="1 of 2 vectors"):
        metrics.intra_list_diversity([[0, 0]], [[np.nan, 0.0]])
