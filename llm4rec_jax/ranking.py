"""Exact ranks over the whole catalogue, counted in chunks on the device.

Scores are computed in tiles of one fixed shape, whatever the chunk, the batch or the number of devices: a matrix
product of another shape may add in another order, and a rank must not depend on that. Chunks and batches are made of
whole tiles.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm4rec_jax.data.batches import bucket
from llm4rec_jax.data.split import Sequences
from llm4rec_jax.metrics import Ranks
from llm4rec_jax.sharding import fetch

USER_TILE, ITEM_TILE = 128, 1024

Pairs = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""(params, profiles [B, D], contexts [N, D]) -> scores [B, N]."""


class NonFiniteScores(ValueError):
    """Scores that are NaN or infinite: with them every comparison is false, and ranks would look perfect."""


class Ranking(NamedTuple):
    """What `rank` finds.

    Attributes:
      ranks: of the targets, users in the order of the user table.
      lists: [users, K] rows of the item table, best first, padded with -1; None unless asked for.
      repeated: targets that are also in the user's history; they are ranked, not masked.
    """

    ranks: Ranks
    lists: np.ndarray | None
    repeated: int


def rank(
    pairs: Pairs,
    params: Any,
    profiles: Callable[[np.ndarray], jax.Array],
    contexts: jax.Array,
    *,
    history: Sequences,
    targets: Sequences,
    candidates: np.ndarray,
    mesh: Mesh,
    batch_size: int = 256,
    chunk: int = 8192,
    top: int = 0,
    everyone: bool = False,
) -> Ranking:
    """Ranks every target among the candidates, the rest of the user's history masked; ties count against the target.

    Args:
      pairs, params: the scoring head; the same function object each time, so that it is compiled once.
      profiles: user rows [n] to profiles [n, D].
      contexts: [I, D].
      history, targets: by user; a target that is not a candidate is a ValueError.
      candidates: [I] bool, the items that are ranked.
      mesh: users are split over its data axis.
      batch_size, chunk: users and items at a time; memory is 4 bytes times their product, a few times over. Rounded up
        to whole tiles. No result depends on them.
      top: K of the lists, 0 for none.
      everyone: rank lists for users without targets too.

    Raises:
      NonFiniteScores: naming how many, and the first user.
    """
    num_items = len(candidates)
    counts = np.diff(targets.offsets)
    users = np.arange(len(counts)) if everyone else np.flatnonzero(counts)
    if (outside := ~candidates[targets.items]).any():
        raise ValueError(
            f"{outside.sum()} targets are not among the candidates, the first being item {targets.items[outside][0]}"
        )
    masked_user, masked_item, repeated = _masked(history, targets, num_items)
    shards = mesh.shape["data"]
    step = -(-batch_size // (USER_TILE * shards)) * USER_TILE * shards
    tiles = -(-num_items // ITEM_TILE)
    chunk_tiles = min(-(-chunk // ITEM_TILE), tiles)
    contexts = jnp.pad(contexts, ((0, tiles * ITEM_TILE - num_items), (0, 0)))
    contexts = jax.device_put(contexts, NamedSharding(mesh, PartitionSpec()))
    allowed = np.pad(candidates, (0, tiles * ITEM_TILE - num_items))

    greater, equal = np.zeros(len(targets.items), np.int64), np.zeros(len(targets.items), np.int64)
    lists = np.full((len(counts), top), -1, np.int32) if top else None
    for start in range(0, len(users), step):
        rows = users[start : start + step]
        # The last batch repeats its last user, who is dropped again below.
        padded = np.concatenate([rows, np.full(step - len(rows), rows[-1])])
        vectors = jax.device_put(profiles(padded), NamedSharding(mesh, PartitionSpec("data")))
        width = max(int(counts[rows].max()), 1)
        column = np.arange(bucket(width) if width > 1 else 1)
        inside = (column < counts[padded][:, None]) & (np.arange(step) < len(rows))[:, None]
        at = np.where(inside, targets.offsets[padded][:, None] + column, 0)
        wanted = targets.items[at] if len(targets.items) else at

        own = _own(pairs, mesh, params, vectors, contexts, wanted)
        more = same = jnp.zeros(wanted.shape, jnp.int32)
        best = (jnp.full((step, top), -jnp.inf), jnp.full((step, top), -1, jnp.int32))
        not_finite = jnp.zeros(step, jnp.int32)
        for first in range(0, tiles, chunk_tiles):
            low, high = first * ITEM_TILE, min(first + chunk_tiles, tiles) * ITEM_TILE
            scores, bad = _scores(pairs, mesh, params, vectors, contexts[low:high], allowed[low:high])
            not_finite += bad
            scores = _mask(scores, *_places(padded, masked_user, masked_item, low, high))
            more, same = _count(more, same, scores, own, wanted - low)
            if top:
                best = _best(*best, scores, low)
        _check_finite(fetch(not_finite)[: len(rows)], rows)
        greater[at[inside]], equal[at[inside]] = fetch(more)[inside], fetch(same)[inside]
        if lists is not None:
            lists[rows] = fetch(best[1])[: len(rows)]

    masked = np.bincount(masked_user[candidates[masked_item]], minlength=len(counts))
    ranked = np.where(counts > 0, candidates.sum() - masked, 0)
    return Ranking(Ranks(targets.offsets.astype(np.int64), 1 + greater + equal, equal, ranked), lists, repeated)


def _masked(history: Sequences, targets: Sequences, num_items: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(user, item) of what is masked, sorted: the history less the targets; and how many targets the history held."""

    def keys(sequences: Sequences) -> np.ndarray:
        user = np.repeat(np.arange(len(sequences.offsets) - 1), np.diff(sequences.offsets))
        return np.unique(user * np.int64(num_items) + sequences.items)

    seen, wanted = keys(history), keys(targets)
    kept = np.setdiff1d(seen, wanted, assume_unique=True)
    user, item = np.divmod(kept, num_items)
    return user, item, len(seen) - len(kept)


def _places(
    users: np.ndarray, masked_user: np.ndarray, masked_item: np.ndarray, low: int, high: int
) -> tuple[np.ndarray, np.ndarray]:
    """Row in `users` and column from `low` of what is masked in [low, high), padded to a bucket with places outside."""
    starts, stops = np.searchsorted(masked_user, users), np.searchsorted(masked_user, users, side="right")
    lengths = stops - starts
    row = np.repeat(np.arange(len(users)), lengths)
    at = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(len(row))
    item = masked_item[at]
    keep = (item >= low) & (item < high)
    row, column = row[keep], item[keep] - low
    padding = (0, bucket(max(len(row), 1)) - len(row))
    return np.pad(row, padding, constant_values=len(users)), np.pad(column, padding, constant_values=high - low)


def _own(
    pairs: Pairs, mesh: Mesh, params: Any, vectors: jax.Array, contexts: jax.Array, wanted: np.ndarray
) -> jax.Array:
    """The scores of the items wanted by each user [B, T]: those items are a small catalogue of their own."""
    items, place = np.unique(wanted, return_inverse=True)
    items = np.pad(items, (0, bucket(len(items), ITEM_TILE) - len(items)))
    scores, _ = _scores(pairs, mesh, params, vectors, contexts[items], np.ones(len(items), bool))
    return jnp.take_along_axis(scores, place.reshape(wanted.shape), axis=1)


def _check_finite(not_finite: np.ndarray, users: np.ndarray) -> None:
    if not_finite.any():
        raise NonFiniteScores(
            f"{not_finite.sum()} scores are NaN or infinite, the first for user row "
            f"{users[np.argmax(not_finite > 0)]}: the model has diverged, or its vectors are not finite"
        )


@partial(jax.jit, static_argnames=("pairs", "mesh"))
def _scores(
    pairs: Pairs, mesh: Mesh, params: Any, profiles: jax.Array, contexts: jax.Array, allowed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Scores [B, N], -inf where an item is not allowed, and how many of each user's are not finite [B]."""

    def local(params: Any, profiles: jax.Array, contexts: jax.Array) -> jax.Array:
        users = profiles.reshape(-1, USER_TILE, profiles.shape[-1])
        items = contexts.reshape(-1, ITEM_TILE, contexts.shape[-1])
        # float32 all through: the default of some devices rounds the factors, which makes ties.
        with jax.default_matmul_precision("highest"):
            tiles = jax.lax.map(lambda u: jax.lax.map(lambda i: pairs(params, u, i).astype(jnp.float32), items), users)
        return tiles.transpose(0, 2, 1, 3).reshape(profiles.shape[0], contexts.shape[0])

    data = PartitionSpec("data")
    replicated = PartitionSpec()
    scores = jax.shard_map(local, mesh=mesh, in_specs=(replicated, data, replicated), out_specs=data, check_vma=False)(
        params, profiles, contexts
    )
    not_finite = (~jnp.isfinite(scores) & allowed).sum(-1)
    return jnp.where(allowed, scores, -jnp.inf), not_finite


@partial(jax.jit, donate_argnums=0)
def _mask(scores: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    return scores.at[row, column].set(-jnp.inf, mode="drop")


@jax.jit
def _count(
    more: jax.Array, same: jax.Array, scores: jax.Array, own: jax.Array, column: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Adds how many of the chunk's scores are above each target's [B, T], and how many of other items equal it."""

    def one(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        score = own[:, t, None]
        return (scores > score).sum(-1), (scores == score).sum(-1)

    above, level = jax.lax.map(one, jnp.arange(own.shape[1]))
    # The target is no rival of itself, nor if its own score came out otherwise in another program.
    within = (column >= 0) & (column < scores.shape[1])
    itself = jnp.take_along_axis(scores, jnp.where(within, column, 0), axis=1)
    return more + above.T - (within & (itself > own)), same + level.T - (within & (itself == own))


@jax.jit
def _best(values: jax.Array, items: jax.Array, scores: jax.Array, low: int) -> tuple[jax.Array, jax.Array]:
    """Merges the chunk into the running lists [B, K]; of equal scores the earlier item comes first."""
    top = min(values.shape[1], scores.shape[1])
    new_values, new_items = jax.lax.top_k(scores, top)
    values = jnp.concatenate([values, new_values], axis=1)
    items = jnp.concatenate([items, new_items + low], axis=1)
    values, order = jax.lax.top_k(values, items.shape[1] - top)
    items = jnp.take_along_axis(items, order, axis=1)
    return values, jnp.where(values == -jnp.inf, -1, items)
