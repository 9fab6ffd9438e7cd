"""Full-catalogue evaluation: exact ranks, metrics by user, and their means."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import polars as pl
from jax.sharding import Mesh

from llm4rec_jax.data.splits.leakage import assert_no_leakage
from llm4rec_jax.data.splits.split import Phase, Sequences, Split
from llm4rec_jax.evaluation import metrics
from llm4rec_jax.evaluation.sampled import num_sampled, rank_sampled
from llm4rec_jax.inference.generative import Ranker
from llm4rec_jax.inference.ranks import Ranks, rank
from llm4rec_jax.inference.scorer import Scorer
from llm4rec_jax.progress import Meter
from llm4rec_jax.registry import unknown_name

Repeats = Literal["keep", "drop", "unmask_history"]
"""How targets are treated that the user's history holds already; see `evaluate`."""
Candidates = Literal["all", "observed", "trained", "sampled_20", "sampled_100"]
"""Which items are ranked: all that the split allows, those with an interaction, those with one in training, or the
target among 20 or 100 drawn ones."""


class Evaluation(NamedTuple):
    """Metrics of a scorer on one part of a split.

    Attributes:
      summary: Metrics, each a mean over users, and counts: `users`, `users_skipped` (users without a target),
        `users_constant` (users to whom all candidates score the same, so that ranks say nothing), `repeated_targets`
        (targets that the history holds already) and `duplicate_targets` (further mentions of a target, counted once).
        `missed_targets` counts those that a generator's beams did not reach, which rank last; `sampled_candidates` is
        the number of items that a target was ranked among, itself included, where they were drawn.
        Where there are repeated targets, "new/METRIC" and "repeat/METRIC" are the means over the other targets and
        over the repeated ones, and `users_new` and `users_repeat` the users who have some.
      per_user: One row a user with targets: `user_id`, `targets` (how many), `history` (known items of the user),
        `target_popularity` (mean number of training interactions of the targets) and every metric.
    """

    summary: dict[str, float]
    per_user: pl.DataFrame


def evaluate(
    scorer: Scorer | Ranker,
    split: Split,
    phase: Phase,
    *,
    mesh: Mesh,
    ks: Sequence[int] = (5, 10, 20),
    batch_size: int = 256,
    chunk: int = 8192,
    beyond_accuracy: bool = False,
    repeats: Repeats = "keep",
    candidates: Candidates = "all",
) -> Evaluation:
    """Ranks the catalogue for every user with a target, the user's history masked, ties against the model.

    Args:
      scorer: Scorer that is evaluated, or a ranker, which generates ids.
      split: Split that has the histories and the targets.
      phase: "validation" or "test".
      mesh: Devices that compute.
      ks: Cut-offs of the metrics.
      batch_size, chunk: Users and items at a time; see `ranks.rank`. No metric depends on them.
      beyond_accuracy: Adds coverage, Gini, novelty and popularity of the lists at the largest cut-off, and their
        diversity where items have vectors.
      repeats: Treatment of a target that the user's history holds already. "keep" ranks it against the items outside
        the history: its rivals from the history are masked and it is not, so its rank is too good, and the summary has
        the metrics of new and of repeated targets beside the mean over both. It is the default since it leaves no
        target out and gives the numbers that are comparable with published ones. "drop" takes such targets out: the
        task is to find new items. "unmask_history" masks nothing: the task is to predict whatever comes next.
      candidates: Items that are ranked. "observed" leaves out items without any interaction, "trained" those without
        one in training, and then targets among them too (`untrained_targets` counts them). "sampled_20" ranks each
        target among 19 drawn items that the user has not had, the same for every model; such metrics are far higher
        than those over the catalogue and order models differently (Krichene & Rendle 2020, KDD), so they are for
        comparison with publications, and for models that are too slow for a catalogue.

    Raises:
      Leak: a history holds an interaction that is to be predicted.
      NonFiniteScores: a score is NaN or infinite.
      ValueError: an unknown value of `repeats` or `candidates`, or no user has a target.
    """
    history, targets = split.history(phase), split.targets_of(phase)
    assert_no_leakage(split.dataset, history, [targets], f"the {phase} history")
    popularity = np.bincount(split.training()[0].items, minlength=split.dataset.num_items)
    ranked = split.candidates(phase) & _allowed(split, popularity, candidates)
    given = len(targets.items)
    targets = _select(targets, _first_mentions(targets))
    duplicates = given - len(targets.items)
    untrained = int((~ranked[targets.items]).sum())
    targets = _select(targets, ranked[targets.items])
    repeated = _among(targets, history, len(ranked))
    num_repeated = int(repeated.sum())
    masked = history
    if repeats == "drop":
        targets, repeated = _select(targets, ~repeated), repeated[~repeated]
    elif repeats == "unmask_history":
        masked = Sequences(np.zeros_like(history.offsets), history.items[:0], None, None)
    elif repeats != "keep":
        raise ValueError(unknown_name("treatment of repeats", repeats, get_args(Repeats)))
    sampled = num_sampled(candidates)
    beyond_accuracy = beyond_accuracy and sampled is None
    top = min(max(ks), len(ranked)) if beyond_accuracy else 0
    if sampled is not None:
        item_embeddings = None
        found = rank_sampled(scorer, history, masked, targets, ranked, sampled, mesh)
    elif isinstance(scorer, Ranker):
        item_embeddings = None
        found = scorer.rank(history, history=masked, targets=targets, candidates=ranked, top=top)
    else:
        item_embeddings = scorer.item_embeddings()
        embed = partial(scorer.user_embeddings, item_embeddings, history)
        with Meter(f"rank, {phase}", int((np.diff(targets.offsets) > 0).sum()), "users") as meter:

            def user_embeddings(users: np.ndarray) -> np.ndarray:
                meter.update(len(users))
                return embed(users)

            found = rank(
                *scorer.head,
                user_embeddings,
                item_embeddings,
                history=masked,
                targets=targets,
                candidates=ranked,
                mesh=mesh,
                batch_size=batch_size,
                chunk=chunk,
                top=top,
            )
    per_user, summary = metrics.evaluate_ranks(found.ranks, ks)
    summary |= {"repeated_targets": num_repeated, "duplicate_targets": duplicates}
    if found.missed:
        summary["missed_targets"] = found.missed
    if sampled is not None:
        summary["sampled_candidates"] = sampled
    if untrained:
        summary["untrained_targets"] = untrained
    if repeated.any():
        summary |= _of_targets("new", found.ranks, ~repeated, ks) | _of_targets("repeat", found.ranks, repeated, ks)
    summary["users_constant"] = len(constant_users(found.ranks))
    users = metrics.evaluated(found.ranks)
    if beyond_accuracy:
        summary |= _beyond_accuracy(found.lists[users], popularity, max(ks))
        # One number an item, as counts are, has no direction that could differ, nor have lists of one item.
        if (
            item_embeddings is not None
            and item_embeddings.shape[1] > 1
            and found.lists.shape[1] > 1
            and (found.lists[users, 1] >= 0).any()
        ):
            diversity = metrics.intra_list_diversity(found.lists[users], item_embeddings)
            summary[f"diversity@{max(ks)}"] = diversity
    table: dict[str, Any] = {"user_id": split.dataset.users["user_id"].gather(per_user.pop("user"))}
    counts = np.diff(targets.offsets)[users]
    table["targets"] = counts
    table["history"] = np.diff(history.offsets)[users]
    totals = np.bincount(
        _user_of_each(targets),
        weights=popularity[targets.items],
        minlength=len(targets.offsets) - 1,
    )
    table["target_popularity"] = totals[users] / counts
    return Evaluation(summary, pl.DataFrame(table | per_user))


def _allowed(split: Split, popularity: np.ndarray, candidates: Candidates) -> np.ndarray:
    """Returns the items [I] that are ranked."""
    match candidates:
        case "all" | "sampled_20" | "sampled_100":
            return np.ones(len(popularity), bool)
        case "observed":
            return np.bincount(split.dataset.interactions.item, minlength=len(popularity)) > 0
        case "trained":
            return popularity > 0
    raise ValueError(unknown_name("choice of candidates", candidates, get_args(Candidates)))


def _user_of_each(sequences: Sequences) -> np.ndarray:
    return np.repeat(np.arange(len(sequences.offsets) - 1), np.diff(sequences.offsets))


def _select(sequences: Sequences, kept: np.ndarray) -> Sequences:
    """Returns the entries of sequences where `kept` [n] is True; ratings and timestamps are left out.

    Offsets [0, 2, 5] with kept [1, 0, 1, 1, 1] become [0, 1, 4].
    """
    offsets = np.concatenate([[0], np.cumsum(kept)])[sequences.offsets]
    return Sequences(offsets, sequences.items[kept], None, None)


def _first_mentions(sequences: Sequences) -> np.ndarray:
    """Returns where an item stands for the first time among the user's, bool [n]."""
    pairs = np.stack([_user_of_each(sequences), sequences.items])
    first = np.zeros(len(sequences.items), bool)
    first[np.unique(pairs, axis=1, return_index=True)[1]] = True
    return first


def _among(targets: Sequences, history: Sequences, num_items: int) -> np.ndarray:
    """Returns which targets the user's history holds, bool [n]."""
    wanted, known = (_user_of_each(s) * np.int64(num_items) + s.items for s in (targets, history))
    return np.isin(wanted, known)


def _of_targets(name: str, ranks: Ranks, chosen: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Returns "NAME/METRIC", the means over the users of some of the targets, and `users_NAME`."""
    if not chosen.any():
        return {f"users_{name}": 0.0}
    offsets = np.concatenate([[0], np.cumsum(chosen)])[ranks.offsets]
    _, summary = metrics.evaluate_ranks(
        ranks._replace(offsets=offsets, rank=ranks.rank[chosen], ties=ranks.ties[chosen]), ks
    )
    users = summary.pop("users")
    del summary["users_skipped"]
    return {f"{name}/{metric}": value for metric, value in summary.items()} | {f"users_{name}": users}


class OrderMatters(ValueError):
    """Ranks that depend on where an item stands in the item table."""


def constant_users(ranks: Ranks) -> np.ndarray:
    """The user rows, of those with targets, to whom every candidate scores the same, so long as there are two."""
    users = metrics.evaluated(ranks)
    level = np.add.reduceat(ranks.ties, ranks.offsets[users]) if users.size else np.zeros(0, np.int64)
    counts = np.diff(ranks.offsets)[users]
    return users[(level == counts * (ranks.candidates[users] - 1)) & (ranks.candidates[users] > 1)]


def check_order(scorer: Scorer | Ranker, split: Split, phase: Phase, *, mesh: Mesh, seed: int = 0) -> None:
    """Ranks again with the items in another order, drawn at random: every rank and every tie must be the same.

    Raises:
      OrderMatters: naming the first user and target.
      ValueError: the model generates ids.
    """
    if isinstance(scorer, Ranker):
        raise ValueError("a run that generates ids gives no item a place in a table: there is no order to check")
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
