"""Metrics of link prediction: filtered ranks of the missing entity of a triple (Bordes et al. 2013)."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Scores = Callable[[np.ndarray], tuple[Any, Any]]
"""Triples [n, 3] to the scores of all entities as tails and as heads, [n, E] each."""


def filtered_ranks(score: Scores, triples: np.ndarray, known: np.ndarray, batch: int = 256) -> np.ndarray:
    """Returns the ranks [2, n] of the tails and of the heads of triples among all entities.

    Entities that make another known triple are left out. An entity with the same score stands before the right one.

    Args:
      score: Scores of all entities.
      triples: Triples that are ranked, [n, 3].
      known: All triples, of training too, [T, 3].
      batch: Number of triples that are scored at a time.
    """
    answers = [_answers(known, (0, 1), 2), _answers(known, (1, 2), 0)]
    ranks = np.zeros((2, len(triples)), np.int64)
    for start in range(0, len(triples), batch):
        rows = triples[start : start + batch]
        # The last batch is filled up, so that one shape is compiled.
        filled = np.pad(rows, ((0, batch - len(rows)), (0, 0)), mode="edge")
        for side, scores in enumerate(map(np.asarray, score(filled))):
            for row, triple in enumerate(rows.tolist()):
                key, right = ((triple[0], triple[1]), triple[2]) if side == 0 else ((triple[1], triple[2]), triple[0])
                others = scores[row].copy()
                target = others[right]
                others[answers[side][key]] = -np.inf
                ranks[side, start + row] = 1 + (others >= target).sum()
    return ranks


def link_metrics(ranks: np.ndarray) -> dict[str, float]:
    """Returns MRR and Hits@1, 3 and 10 of ranks of any shape.

    Example:
      >>> link_metrics(np.array([[1, 4], [2, 20]]))["hits@3"]
      0.5
    """
    return {"mrr": float((1 / ranks).mean()), **{f"hits@{k}": float((ranks <= k).mean()) for k in (1, 3, 10)}}


def _answers(known: np.ndarray, key: tuple[int, int], answer: int) -> Mapping[tuple[int, int], list[int]]:
    """Returns the entities that complete each pair in the known triples."""
    answers: dict[tuple[int, int], list[int]] = {}
    for triple in known.tolist():
        answers.setdefault((triple[key[0]], triple[key[1]]), []).append(triple[answer])
    return answers
