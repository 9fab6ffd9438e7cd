"""Ranks among a few drawn candidates, as many papers on language models report them."""

from typing import Any

import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.inference.ranks import NonFiniteScores, Ranking, Ranks


def num_sampled(candidates: str) -> int | None:
    """Returns the number of candidates that a protocol draws, the target included; None where it draws none.

    Example:
      >>> num_sampled("sampled_20"), num_sampled("all")
      (20, None)
    """
    kind, _, count = candidates.partition("_")
    return int(count) if kind == "sampled" else None


def name_protocol(split: str, candidates: str) -> str:
    """Returns the name of a split's protocol, and how many drawn items a target is ranked among.

    Example:
      >>> name_protocol("leave one out", "sampled_20")
      'leave one out, targets among 20 drawn items'
    """
    count = num_sampled(candidates)
    return split if count is None else f"{split}, targets among {count} drawn items"


def draw_candidates(history: Sequences, targets: Sequences, allowed: np.ndarray, count: int) -> np.ndarray:
    """Draws the items that each target is ranked among, uniformly and without repetition.

    They depend on the data alone, so every model ranks the same ones.

    Args:
      history: Items that are not drawn, by user.
      targets: Targets by user, n in all; none of a user's is drawn for another one.
      allowed: [I] bool, the items that may be drawn.
      count: Number of items T that a target is ranked among, itself included.

    Returns:
      Rows of the item table [n, T]; the target is the first.

    Raises:
      ValueError: A user has too few other items.

    Example:
      >>> history = Sequences(np.array([0, 1]), np.array([2], np.int32), None, None)
      >>> targets = Sequences(np.array([0, 1]), np.array([0], np.int32), None, None)
      >>> drawn = draw_candidates(history, targets, np.ones(5, bool), 4)
      >>> int(drawn[0, 0]), sorted(drawn[0].tolist())
      (0, [0, 1, 3, 4])
    """
    drawn = np.empty((len(targets.items), count), np.int32)
    drawn[:, 0] = targets.items
    for user in np.flatnonzero(np.diff(targets.offsets)).tolist():
        free = allowed.copy()
        free[history.of(user)] = free[targets.of(user)] = False
        pool = np.flatnonzero(free)
        if len(pool) < count - 1:
            raise ValueError(
                f"user row {user} has {len(pool)} candidates beside the history and the targets, and {count - 1} are "
                "to be drawn: rank all candidates"
            )
        rng = np.random.default_rng([count, user])
        for row in range(targets.offsets[user], targets.offsets[user + 1]):
            drawn[row, 1:] = rng.choice(pool, count - 1, replace=False)
    return drawn


def rank_sampled(
    scorer: Any, read: Sequences, history: Sequences, targets: Sequences, allowed: np.ndarray, count: int, mesh: Mesh
) -> Ranking:
    """Ranks each target among drawn candidates, ties against it; see `draw_candidates` for the arguments.

    Args:
      scorer: Has a method `score`, as `inference.scorer.Scorer` describes it.
      read: Items that the model reads, by user.
      history, targets, allowed, count: See `draw_candidates`.
      mesh: The devices.

    Raises:
      NonFiniteScores: A score is NaN or infinite.
    """
    items = draw_candidates(history, targets, allowed, count)
    counts = np.diff(targets.offsets)
    users = np.repeat(np.arange(len(counts)), counts)
    scores = scorer.score(read, users, items, mesh=mesh)
    if (bad := ~np.isfinite(scores).all(axis=1)).any():
        raise NonFiniteScores(
            f"scores of {bad.sum()} targets are NaN or infinite, the first is of user row {users[bad.argmax()]}: the "
            "model has diverged"
        )
    higher = (scores[:, 1:] > scores[:, :1]).sum(axis=1)
    ties = (scores[:, 1:] == scores[:, :1]).sum(axis=1)
    ranks = Ranks(targets.offsets.astype(np.int64), 1 + higher + ties, ties, np.where(counts > 0, count, 0))
    nothing = np.zeros((len(counts), 0))
    return Ranking(ranks, nothing.astype(np.int32), nothing, int(np.isin(_pairs(targets), _pairs(history)).sum()))


def _pairs(sequences: Sequences) -> np.ndarray:
    """Returns a number for each user and item."""
    user = np.repeat(np.arange(len(sequences.offsets) - 1), np.diff(sequences.offsets))
    return user * np.int64(2**31) + sequences.items
