"""Ranks by generation: the items of the ids that a beam search finds, instead of a score of every item."""

from functools import cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.batching.buckets import bucket
from llm4rec_jax.data.batching.windows import histories
from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.inference.batched import FixedBatches, map_in_fixed_batches
from llm4rec_jax.inference.beam_search import beam_search, items_below, scores_of_ids
from llm4rec_jax.inference.ranks import NonFiniteScores, Ranking, Ranks, masked_items
from llm4rec_jax.models.generators.base import IdGenerator
from llm4rec_jax.semantic_ids import SemanticIds, build_trie
from llm4rec_jax.sharding import fetch


@runtime_checkable
class Ranker(Protocol):
    """A model that ranks by itself and compares no user with every item. Everything else is a `Scorer`."""

    num_items: int

    def rank(
        self,
        read: Sequences,
        *,
        history: Sequences,
        targets: Sequences,
        candidates: np.ndarray,
        top: int = 0,
        everyone: bool = False,
    ) -> Ranking:
        """Ranks targets as `inference.ranks.rank` does.

        Args:
          read: Items that the model reads, by user.
          history: Items that are not ranked, by user.
          targets, candidates, top, everyone: See `inference.ranks.rank`.
        """
        ...

    def score(self, history: Sequences, users: np.ndarray, items: np.ndarray, *, mesh: Mesh) -> np.ndarray:
        """Returns the scores [n, T] of the items in rows [n, T] for the users in rows [n]."""
        ...


class GenerativeScorer:
    """Searches ids with a generator. A run makes one; `of` gives it parameters.

    Args:
      model: The generator.
      ids: Ids of the catalogue. Items of one id have one score, and so tie.
      mesh: The devices, which share the users.
      history: Length H of the longest history that is read.
      beams: Number of beams K of the search.
    """

    def __init__(self, model: IdGenerator, ids: SemanticIds, mesh: Mesh, history: int, beams: int) -> None:
        self.ids, self.beams, self._history = ids, beams, history
        self.trie = trie = build_trie(ids)
        self._constants = trie.levels, jnp.asarray(ids.codes)

        def next_logits(params: Any, codes: jax.Array, items: jax.Array, mask: jax.Array) -> Any:
            own = {"params": params["generator"]}
            memory = model.apply(own, codes[items], mask, method="read")
            return lambda prefixes: model.apply(own, memory, prefixes, method="next_logits")

        def search(beams: int) -> FixedBatches:
            def run(weights: Any, items: jax.Array, mask: jax.Array, excluded: jax.Array) -> jax.Array:
                params, (levels, codes), allowed = weights
                found = beam_search(
                    next_logits(params, codes, items, mask), levels, items_below(trie, allowed, excluded), beams
                )
                # One array goes to the host: the bits of the scores as integers.
                return jnp.stack(found._replace(scores=found.scores.view(jnp.int32)), axis=1)

            return map_in_fixed_batches(run, mesh)

        def score(weights: Any, items: jax.Array, mask: jax.Array, rows: jax.Array) -> jax.Array:
            params, (_, codes) = weights
            return scores_of_ids(next_logits(params, codes, items, mask), codes[rows])

        self._search, self._score = cache(search), map_in_fixed_batches(score, mesh)

    def of(self, params: Any, *_: Any) -> "BoundGenerator":
        """Returns the ranker with the parameters {"generator": …}."""
        return BoundGenerator(self, params)

    def beams_of(
        self, params: Any, read: Sequences, users: np.ndarray, excluded: np.ndarray, allowed: np.ndarray, beams: int
    ) -> "FoundIds":
        """Searches for the ids of users in rows [n]; for `excluded` [n, M] and `allowed` [I] see `items_below`.

        Raises:
          NonFiniteScores: Naming of how many users, and the first.
        """
        weights = params, self._constants, jnp.asarray(allowed)
        leaves, scores, items = np.moveaxis(
            self._search(beams)(weights, *histories(read, users, self._history), excluded), 1, 0
        )
        found = FoundIds(leaves, scores.view(np.float32), items)
        if (bad := np.isnan(found.scores).any(axis=1)).any():
            raise NonFiniteScores(
                f"scores of {bad.sum()} users are NaN or infinite, the first is user row {users[bad.argmax()]}: the "
                "model has diverged"
            )
        return found

    def scores(self, params: Any, history: Sequences, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Returns the log-probabilities [n, T] of the ids of items in rows [n, T] for users in rows [n]."""
        return self._score((params, self._constants), *histories(history, users, self._history), items)


class FoundIds(NamedTuple):
    """`beam_search.Beams` on the host."""

    leaves: np.ndarray
    scores: np.ndarray
    items: np.ndarray


class BoundGenerator:
    """A `GenerativeScorer` with its parameters: a `Ranker`."""

    def __init__(self, scorer: GenerativeScorer, params: Any) -> None:
        # Every call takes them anew, and a state that was restored lies on one device.
        self._scorer, self._params = scorer, jax.tree.map(fetch, {"generator": params["generator"]})
        self.num_items = len(scorer.ids.codes)

    def rank(
        self,
        read: Sequences,
        *,
        history: Sequences,
        targets: Sequences,
        candidates: np.ndarray,
        top: int = 0,
        everyone: bool = False,
    ) -> Ranking:
        """Ranks the targets among the items that the beams reach; see `Ranker.rank`.

        The rank of a target is one more than the number of items with a higher score; items of the same score are ties.
        A target that no beam reaches ranks last, and is counted in `missed`. Metrics at a cut-off K or below are those
        of the list of K beams; the mean rank and the reciprocal rank take misses as last.
        """
        counts = np.diff(targets.offsets)
        users = np.arange(len(counts)) if everyone else np.flatnonzero(counts)
        masked_user, masked_item, repeated = masked_items(history, targets, len(candidates))
        excluded = _rows(masked_user, masked_item, users)
        beams = max(self._scorer.beams, top) if everyone else self._scorer.beams
        found = self._scorer.beams_of(self._params, read, users, excluded, candidates, beams)
        ranked = np.where(
            counts > 0,
            candidates.sum() - np.bincount(masked_user[candidates[masked_item]], minlength=len(counts)),
            0,
        )

        user = np.repeat(np.arange(len(counts)), counts)
        row, leaf = np.searchsorted(users, user), self._scorer.trie.node_of_item[-1][targets.items]
        at = found.leaves[row] == leaf[:, None]
        reached = at.any(axis=1)
        score = np.where(reached, found.scores[row, at.argmax(axis=1)], -np.inf)[:, None]
        higher = (found.items[row] * (found.scores[row] > score)).sum(axis=1)
        same = (found.items[row] * (found.scores[row] == score)).sum(axis=1) - 1
        rank = np.where(reached, 1 + higher + same, ranked[user])
        ranks = Ranks(targets.offsets.astype(np.int64), rank, np.where(reached, same, 0), ranked)

        lists, scores = np.full((len(counts), top), -1, np.int32), np.full((len(counts), top), -np.inf, np.float32)
        if top:
            lists[users], scores[users] = self._lists(found, excluded, candidates, top)
        return Ranking(ranks, lists, scores, repeated, int((~reached).sum()))

    def score(self, history: Sequences, users: np.ndarray, items: np.ndarray, *, mesh: Mesh) -> np.ndarray:
        """Returns the log-probabilities [n, T] of items; see `Ranker.score`."""
        return self._scorer.scores(self._params, history, users, np.asarray(items, np.int32))

    def _lists(
        self, found: FoundIds, excluded: np.ndarray, allowed: np.ndarray, top: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the items that may be shown of the ids found, in their order, and scores: [n, top] each."""
        leaf = self._scorer.trie.node_of_item[-1]
        of_leaf = _rows(np.sort(leaf), np.argsort(leaf, kind="stable"), np.arange(leaf.max() + 1))
        items = np.where(found.leaves[..., None] >= 0, of_leaf[found.leaves], -1)
        scores = np.broadcast_to(found.scores[..., None], items.shape).reshape(len(items), -1)
        items = items.reshape(len(items), -1)
        shown = (items >= 0) & allowed[items]
        # Ids are seldom shared, so few items of those found can be the user's own.
        row = np.arange(len(items))[:, None] * np.int64(len(allowed))
        shown &= ~np.isin(row + items, (row + excluded)[excluded >= 0])
        order = np.argsort(~shown, axis=1, kind="stable")[:, :top]
        shown, items, scores = (np.take_along_axis(array, order, axis=1) for array in (shown, items, scores))
        missing = ((0, 0), (0, top - items.shape[1]))
        return (
            np.pad(np.where(shown, items, -1), missing, constant_values=-1),
            np.pad(np.where(shown, scores, -np.inf), missing, constant_values=-np.inf),
        )


def _rows(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the values of each wanted key in a row, padded with -1, to a bucket where a key has several; keys ascend.

    Keys [0, 0, 2] and values [7, 8, 9] for [0, 1, 2] give [[7, 8], [-1, -1], [9, -1]], if 2 is a bucket.
    """
    starts, stops = np.searchsorted(keys, wanted), np.searchsorted(keys, wanted, side="right")
    most = int((stops - starts).max(initial=0))
    column = np.arange(bucket(most) if most > 1 else 1)
    inside = column < (stops - starts)[:, None]
    at = np.where(inside, starts[:, None] + column, 0)
    return np.where(inside, values[at] if len(values) else -1, -1).astype(np.int32)
