"""Properties of metrics that hold for all scores, by Hypothesis."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4rec_jax.evaluation import metrics
from llm4rec_jax.evaluation.metrics import evaluate_ranks, ranks
from llm4rec_jax.inference.ranks import Ranks

KS = (1, 2, 3, 10)


@st.composite
def users(draw: st.DrawFn, most_targets: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [N] with ties, targets [n] and masked [N] of one user."""
    size = draw(st.integers(2, 9))
    scores = draw(st.lists(st.integers(-3, 3) | st.floats(-1e300, 1e300), min_size=size, max_size=size))
    order = draw(st.permutations(range(size)))
    count = draw(st.integers(1, min(most_targets, size - 1)))
    masked = np.zeros(size, bool)
    masked[order[count : count + draw(st.integers(0, size - count - 1))]] = True
    return np.array(scores, float), np.array(sorted(order[:count])), masked


def summary(scores: np.ndarray, targets: np.ndarray, masked: np.ndarray) -> dict[str, float]:
    return evaluate_ranks(ranks(scores, targets, masked), KS)[1]


@given(users())
def test_a_rank_counts_what_is_better_and_what_ties(user):
    scores, targets, masked = user
    found = ranks(scores, targets, masked)
    for target, rank, ties in zip(targets, found.rank, found.ties, strict=True):
        others = [s for item, s in enumerate(scores) if item != target and not masked[item]]
        tied = sum(s == scores[target] for s in others)
        assert (rank, ties) == (1 + sum(s > scores[target] for s in others) + tied, tied)


@given(users())
def test_metrics_are_bounded_ordered_and_grow_with_the_cutoff(user):
    found = summary(*user)
    for name, value in found.items():
        if name not in ("mean_rank", "users", "users_skipped"):
            assert 0 <= value <= 1, name
    for name in ("hr", "recall", "rr", "ap"):
        assert [found[f"{name}@{k}"] for k in KS] == sorted(found[f"{name}@{k}"] for k in KS)
    for k in KS:
        assert found[f"recall@{k}"] <= found[f"hr@{k}"]
        assert found[f"rr@{k}"] <= min(found[f"hr@{k}"], found["mrr"])
        assert found[f"ap@{k}"] <= found[f"ap_min@{k}"] + 1e-12
        assert (found[f"ndcg@{k}"] > 0) == (found[f"hr@{k}"] > 0)


@given(users(), st.randoms(use_true_random=False))
def test_metrics_depend_on_the_order_of_scores_alone(user, random):
    """Neither on the scores themselves nor on where an item stands."""
    scores, targets, masked = user
    _, level = np.unique(scores, return_inverse=True)
    order = list(range(len(scores)))
    random.shuffle(order)
    place = np.argsort(order)
    assert summary(level.astype(float) ** 3 - 7, targets, masked) == summary(*user)
    assert summary(scores[order], place[targets], masked[order]) == summary(*user)


@given(users(most_targets=1), st.floats(0, 10))
def test_a_higher_score_of_the_only_target_makes_nothing_worse(user, more):
    scores, targets, masked = user
    raised = scores.copy()
    raised[targets] += more
    before, after = summary(*user), summary(raised, targets, masked)
    for name, value in before.items():
        assert after[name] <= value if name == "mean_rank" else after[name] >= value, name


@given(users())
def test_scores_turned_around_turn_the_area_around(user):
    scores, targets, masked = user
    assert summary(-scores, targets, masked)["auc"] == pytest.approx(1 - summary(*user)["auc"], abs=1e-12)
    labels = np.isin(np.arange(len(scores)), targets)
    whole = metrics.auc(scores, labels)
    assert metrics.auc(-scores, labels) == pytest.approx(1 - whole, abs=1e-12)
    assert metrics.gauc(scores, labels, np.zeros(len(scores))).value == pytest.approx(whole, abs=1e-12)
    # Unmasked, the area of a user is that of his labels.
    assert summary(scores, targets, np.zeros(len(scores), bool))["auc"] == pytest.approx(whole, abs=1e-12)


@given(users(), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_scores_that_are_not_finite_are_refused_unless_masked(user, value, data):
    scores, targets, masked = user
    at = data.draw(st.integers(0, len(scores) - 1))
    broken = scores.copy()
    broken[at] = value
    if masked[at]:
        assert summary(broken, targets, masked) == summary(*user)
        return
    with pytest.raises(ValueError, match=r"1 of \d+ scores are not finite"):
        ranks(broken, targets, masked)


@given(st.lists(users(), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_a_mean_over_users_lies_between_them_and_knows_no_order(drawn, random):
    each = [ranks(*user) for user in drawn]

    def together(found: list[Ranks]) -> dict[str, float]:
        offsets = np.cumsum([0, *(len(row.rank) for row in found)])
        columns = (np.concatenate([getattr(row, name) for row in found]) for name in ("rank", "ties", "candidates"))
        return evaluate_ranks(Ranks(offsets, *columns), KS)[1]

    found, alone = together(each), [evaluate_ranks(row, KS)[1] for row in each]
    random.shuffle(each)
    assert together(each) == found
    for name in found.keys() - {"users", "users_skipped"}:
        values = [one[name] for one in alone]
        assert min(values) - 1e-12 <= found[name] <= max(values) + 1e-12, name


NUMBERS = st.lists(st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 2), min_size=1, max_size=20)


@given(NUMBERS, st.floats(-100, 100))
def test_errors_are_ordered_symmetric_and_know_no_shift(pairs, shift):
    predicted, rated = np.array(pairs).T
    rmse, mae = metrics.rmse(predicted, rated), metrics.mae(predicted, rated)
    worst = np.abs(predicted - rated).max()
    assert 0 <= mae <= rmse * (1 + 1e-12)
    assert rmse <= worst * (1 + 1e-12)
    assert (rmse, mae) == (metrics.rmse(rated, predicted), metrics.mae(rated, predicted))
    assert metrics.mae(predicted + shift, rated + shift) == pytest.approx(mae, abs=1e-8)


@st.composite
def lists(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Lists [users, K] of distinct items, padded with -1, of a catalogue; the first is not empty."""
    items, k = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(st.integers(0, items - 1), unique=True, max_size=k), min_size=1, max_size=5))
    rows[0] = rows[0] or [0]
    return np.array([row + [-1] * (k - len(row)) for row in rows]), items


@given(lists(), st.data())
def test_what_is_beyond_accuracy_is_bounded_and_knows_no_names(drawn, data):
    held, items = drawn
    coverage, gini = metrics.coverage(held, items), metrics.gini(held, items)
    assert coverage == len(set(held[held >= 0].tolist())) / items
    assert -1e-12 <= gini <= 1 - 1 / items + 1e-12
    renamed = np.append(data.draw(st.permutations(range(items))), -1)
    assert metrics.coverage(renamed[held], items) == coverage
    assert metrics.gini(renamed[held], items) == pytest.approx(gini, abs=1e-12)
