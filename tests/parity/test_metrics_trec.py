"""Ranking metrics against trec_eval, by way of pytrec_eval and ir-measures, on rankings without ties."""

import ir_measures
import numpy as np
import pytest
import pytrec_eval

from llm4rec_jax.evaluation.metrics import evaluate_ranks, ranks
from llm4rec_jax.inference.ranks import Ranks

USERS, ITEMS = 60, 40
KS = (1, 5, 10)
TREC = {
    "hr": "success",
    "recall": "recall",
    "precision": "P",
    "ndcg": "ndcg_cut",
    "ap": "map_cut",
}


@pytest.fixture(scope="module")
def case():
    """Qrels and run as trec_eval takes them, and the ranks of the same users."""
    rng = np.random.default_rng(0)
    qrels, run, rows = {}, {}, []
    for user in range(USERS):
        scores = rng.permutation(ITEMS).astype(float)
        order = rng.permutation(ITEMS)
        count = rng.integers(1, 13)
        targets, masked = order[:count], np.zeros(ITEMS, bool)
        masked[order[count : count + rng.integers(0, 9)]] = True
        qrels[str(user)] = {str(item): 1 for item in targets}
        run[str(user)] = {str(item): scores[item] for item in np.flatnonzero(~masked)}
        rows.append(ranks(scores, targets, masked))
    stacked = Ranks(
        np.concatenate([[0], np.cumsum([len(row.rank) for row in rows])]),
        *(np.concatenate(parts) for parts in zip(*(row[1:] for row in rows), strict=True)),
    )
    return qrels, run, stacked


def test_metrics_match_pytrec_eval(case):
    qrels, run, stacked = case
    cutoffs = ",".join(map(str, KS))
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {f"{name}.{cutoffs}" for name in TREC.values()} | {"recip_rank"})
    expected = evaluator.evaluate(run)
    values, _ = evaluate_ranks(stacked, KS)
    for ours, theirs in [(f"{a}@{k}", f"{b}_{k}") for a, b in TREC.items() for k in KS] + [("mrr", "recip_rank")]:
        reference = [expected[str(user)][theirs] for user in range(USERS)]
        np.testing.assert_allclose(values[ours], reference, atol=1e-12, err_msg=ours)


def test_attainable_average_precision_rescales_that_of_trec_eval(case):
    qrels, _, stacked = case
    values, _ = evaluate_ranks(stacked, KS)
    positives = np.array([len(qrels[str(user)]) for user in range(USERS)])
    for k in KS:
        np.testing.assert_allclose(values[f"ap_min@{k}"], values[f"ap@{k}"] * positives / np.minimum(positives, k))


def test_means_match_ir_measures(case):
    qrels, run, stacked = case
    measures = {
        f"{name}@{k}": measure @ k
        for k in KS
        for name, measure in {
            "hr": ir_measures.Success,
            "recall": ir_measures.R,
            "precision": ir_measures.P,
            "ndcg": ir_measures.nDCG,
            "rr": ir_measures.RR,
            "ap": ir_measures.AP,
        }.items()
    }
    expected = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
    _, summary = evaluate_ranks(stacked, KS)
    for name, measure in measures.items():
        assert summary[name] == pytest.approx(expected[measure], abs=1e-12), name
