"""Full-catalogue evaluation: exact ranks, metrics by user, and their means."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jax.sharding import Mesh

from llm4rec_jax.data.splits.leakage import assert_no_leakage
from llm4rec_jax.data.splits.split import Phase, Split
from llm4rec_jax.evaluation import metrics
from llm4rec_jax.evaluation.ranks import rank
from llm4rec_jax.inference.scorer import Scorer


class Evaluation(NamedTuple):
    """Attributes:
    summary: metric name to its mean over users, with `users`, `users_skipped` (without targets), `repeated_targets`
      (already in the history; ranked all the same) and `users_constant` (all candidates have one score: the ranks say
      nothing).
    per_user: one row a user that has targets: `user_id`, `targets` (how many), `history` (items known of the user),
      `target_popularity` (training interactions of the targets, their mean; 0 for items that are new), every metric.
    """

    summary: dict[str, float]
    per_user: pl.DataFrame


def evaluate(
    scorer: Scorer,
    split: Split,
    phase: Phase,
    *,
    mesh: Mesh,
    ks: Sequence[int] = (5, 10, 20),
    batch_size: int = 256,
    chunk: int = 8192,
    beyond_accuracy: bool = False,
) -> Evaluation:
    """Ranks the whole catalogue for every user with a target, the history masked, ties against the model.

    Args:
      scorer: what is evaluated.
      split, phase: "validation" or "test" of a split.
      mesh: where to compute.
      ks: cut-offs.
      batch_size, chunk: users and items at a time; see `ranking.rank`. No metric depends on them.
      beyond_accuracy: coverage, Gini, novelty and popularity of the lists at the largest cut-off too, and their
        diversity where items have vectors.

    Raises:
      Leak: a history holds what is to be predicted.
      NonFiniteScores: a score is NaN or infinite.
    """
    item_embeddings = scorer.item_embeddings()
    pairs, params = scorer.head
    history, targets = split.history(phase), split.targets_of(phase)
    candidates = split.candidates(phase)
    assert_no_leakage(split.dataset, history, [targets], f"the {phase} history")
    found = rank(
        pairs,
        params,
        lambda users: scorer.user_embeddings(item_embeddings, history, users),
        item_embeddings,
        history=history,
        targets=targets,
        candidates=candidates,
        mesh=mesh,
        batch_size=batch_size,
        chunk=chunk,
        top=min(max(ks), len(candidates)) if beyond_accuracy else 0,
    )
    per_user, summary = metrics.evaluate_ranks(found.ranks, ks)
    summary["repeated_targets"] = found.repeated
    summary["users_constant"] = len(constant_users(found.ranks))
    users = metrics.evaluated(found.ranks)
    popularity = np.bincount(split.training()[0].items, minlength=split.dataset.num_items)
    if found.lists is not None:
        summary |= _beyond_accuracy(found.lists[users], popularity, max(ks))
        # One number an item, as counts are, has no direction that could differ, nor have lists of one item.
        if item_embeddings.shape[1] > 1 and found.lists.shape[1] > 1 and (found.lists[users, 1] >= 0).any():
            diversity = metrics.intra_list_diversity(found.lists[users], item_embeddings)
            summary[f"diversity@{max(ks)}"] = diversity
    table: dict[str, Any] = {"user_id": split.dataset.users["user_id"].gather(per_user.pop("user"))}
    counts = np.diff(targets.offsets)[users]
    table["targets"] = counts
    table["history"] = np.diff(history.offsets)[users]
    totals = np.bincount(
        np.repeat(np.arange(len(targets.offsets) - 1), np.diff(targets.offsets)),
        weights=popularity[targets.items],
        minlength=len(targets.offsets) - 1,
    )
    table["target_popularity"] = totals[users] / counts
    return Evaluation(summary, pl.DataFrame(table | per_user))


class OrderMatters(ValueError):
    """Ranks that depend on where an item stands in the item table."""


def constant_users(ranks: metrics.Ranks) -> np.ndarray:
    """The user rows, of those with targets, to whom every candidate scores the same, so long as there are two."""
    users = metrics.evaluated(ranks)
    level = np.add.reduceat(ranks.ties, ranks.offsets[users]) if users.size else np.zeros(0, np.int64)
    counts = np.diff(ranks.offsets)[users]
    return users[(level == counts * (ranks.candidates[users] - 1)) & (ranks.candidates[users] > 1)]


def check_order(scorer: Scorer, split: Split, phase: Phase, *, mesh: Mesh, seed: int = 0) -> None:
    """Ranks again with the items in another order, drawn at random: every rank and every tie must be the same.

    Raises:
      OrderMatters: naming the first user and target.
    """
    item_embeddings = scorer.item_embeddings()
    pairs, params = scorer.head
    history, targets, candidates = split.history(phase), split.targets_of(phase), split.candidates(phase)

    # Users read what they have read: the order of the items is moved, and not what an item is.
    def user_embeddings(users: np.ndarray) -> np.ndarray:
        return scorer.user_embeddings(item_embeddings, history, users)

    order = np.random.default_rng(seed).permutation(len(candidates))
    place = np.argsort(order)
    kept, moved = (
        rank(
            pairs,
            params,
            user_embeddings,
            vectors,
            history=history._replace(items=where[history.items]),
            targets=targets._replace(items=where[targets.items]),
            candidates=allowed,
            mesh=mesh,
        ).ranks
        for vectors, where, allowed in (
            (item_embeddings, np.arange(len(order)), candidates),
            (item_embeddings[order], place, candidates[order]),
        )
    )
    differing = np.flatnonzero((kept.rank != moved.rank) | (kept.ties != moved.ties))
    if differing.size:
        at = int(differing[0])
        user = int(np.searchsorted(targets.offsets, at, side="right")) - 1
        raise OrderMatters(
            f"{differing.size} of {len(kept.rank)} {phase} targets rank otherwise with the items in another order, the "
            f"first being item {split.dataset.items['item_id'][int(targets.items[at])]!r} of user "
            f"{split.dataset.users['user_id'][user]!r}: {kept.rank[at]} and {moved.rank[at]}, ties "
            f"{kept.ties[at]} and {moved.ties[at]}"
        )


def _beyond_accuracy(lists: np.ndarray, popularity: np.ndarray, k: int) -> dict[str, float]:
    num_items = len(popularity)
    return {
        f"coverage@{k}": metrics.coverage(lists, num_items),
        f"gini@{k}": metrics.gini(lists, num_items),
        f"novelty@{k}": metrics.novelty(lists, popularity),
        f"mean_popularity@{k}": metrics.mean_popularity(lists, popularity),
    }
