"""Exact ranks over the whole catalogue, counted where its vectors are.

The catalogue is cut over the devices: a rank is one more than a sum of counts, so each counts over its own items, and
the best lists of each are merged. Scores are computed in tiles of one fixed shape, whatever the chunk, the batch or the
number of devices: a matrix product of another shape may add in another order, and a rank must not depend on that.
Chunks, batches and the parts of devices are made of whole tiles.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import NDArray

from llm4rec_jax.data.batching.buckets import bucket
from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.inference.tiles import ITEM_TILE, USER_TILE, Grid, grid, places
from llm4rec_jax.sharding import fetch, put

Pairs = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""(params, user embeddings [B, D], item embeddings [N, D]) -> scores [B, N]."""


class NonFiniteScores(ValueError):
    """Scores that are NaN or infinite: with them every comparison is false, and ranks would look perfect."""


class Ranks(NamedTuple):
    """Exact ranks of the targets of each user, in compressed rows: user u owns offsets[u] to offsets[u + 1].

    offsets int64 [users + 1]; rank int64 [n], 1 the best; ties int64 [n], other candidates of the same score;
    candidates int64 [users], ranked items of the user, targets included.
    """

    offsets: NDArray[np.int64]
    rank: NDArray[np.int64]
    ties: NDArray[np.int64]
    candidates: NDArray[np.int64]


class Ranking(NamedTuple):
    """The result of `rank`.

    Attributes:
      ranks: of the targets, users in the order of the user table.
      lists: [users, K] rows of the item table, best first, padded with -1.
      scores: [users, K] of the items in the lists; -inf where they are padded.
      repeated: targets that are also in the user's history; they are ranked, not masked.
      missed: targets that a generator's beams did not reach; they rank last.
    """

    ranks: Ranks
    lists: np.ndarray
    scores: np.ndarray
    repeated: int
    missed: int = 0


def rank(
    pairs: Pairs,
    params: Any,
    user_embeddings: Callable[[np.ndarray], np.ndarray],
    item_embeddings: np.ndarray,
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
      user_embeddings: user rows [n] to user embeddings [n, D].
      item_embeddings: [I, D], on the host: each device is given its part.
      history, targets: by user; a target that is not a candidate is a ValueError.
      candidates, mesh: [I] bool, the items that are ranked; the devices.
      batch_size, chunk: users at a time, and items that a device scores at a time, rounded up to whole tiles. Lists
        need memory of 4 bytes times their product, a few times over, besides the device's part of the items; ranks
        alone need a tile's. No result depends on them.
      top: K of the lists, 0 for none.
      everyone: rank lists for users without targets too.

    Raises:
      NonFiniteScores: naming of how many users, and the first.
    """
    num_items = len(candidates)
    counts = np.diff(targets.offsets)
    users = np.arange(len(counts)) if everyone else np.flatnonzero(counts)
    if (outside := ~candidates[targets.items]).any():
        raise ValueError(
            f"{outside.sum()} targets are not among the candidates, the first being item {targets.items[outside][0]}"
        )
    masked_user, masked_item, repeated = masked_items(history, targets, num_items)
    # Without lists nothing is kept of a chunk but counts.
    cut = grid(mesh, num_items, chunk if top else num_items)
    shards = cut.mesh.shape["user"]
    step = -(-batch_size // (USER_TILE * shards)) * USER_TILE * shards
    table, allowed = cut.lay(item_embeddings), cut.lay(candidates)

    greater, equal = np.zeros(len(targets.items), np.int64), np.zeros(len(targets.items), np.int64)
    lists, scores = np.full((len(counts), top), -1, np.int32), np.full((len(counts), top), -np.inf, np.float32)
    for start in range(0, len(users), step):
        rows = users[start : start + step]
        # The last batch repeats its last user, who is dropped again below.
        padded = np.concatenate([rows, np.full(step - len(rows), rows[-1])])
        vectors = put(np.pad(user_embeddings(rows), ((0, step - len(rows)), (0, 0)), mode="edge"), cut.sharding("user"))
        most = max(int(counts[rows].max()), 1)
        column = np.arange(bucket(most) if most > 1 else 1)
        inside = (column < counts[padded][:, None]) & (np.arange(step) < len(rows))[:, None]
        at = np.where(inside, targets.offsets[padded][:, None] + column, 0)
        wanted = targets.items[at] if len(targets.items) else at

        if len(targets.items):
            own = _own(pairs, cut, params, vectors, item_embeddings, wanted)
        else:
            own = put(np.zeros(wanted.shape, np.float32), cut.sharding("user"))
        found = _start(cut, own, top)
        for number, (row, place) in enumerate(places(padded, masked_user, masked_item, cut)):
            found = _chunk(pairs, cut, params, found, vectors, table, allowed, own, wanted, row, place, number)
        more, same, bad, best, values = (fetch(a) for a in _together(found))
        _check_finite(bad[: len(rows)], rows)
        greater[at[inside]], equal[at[inside]] = more[inside], same[inside]
        lists[rows], scores[rows] = best[: len(rows)], values[: len(rows)]

    masked = np.bincount(masked_user[candidates[masked_item]], minlength=len(counts))
    ranked = np.where(counts > 0, candidates.sum() - masked, 0)
    ranks = Ranks(targets.offsets.astype(np.int64), 1 + greater + equal, equal, ranked)
    return Ranking(ranks, lists, scores, repeated)


def scores_of(
    pairs: Pairs, params: Any, user_embeddings: np.ndarray, item_embeddings: np.ndarray, items: np.ndarray, mesh: Mesh
) -> np.ndarray:
    """Returns the scores [B, T] of the items in rows [B, T], one row a user, as `rank` computes them.

    Args:
      pairs, params, item_embeddings, mesh: see `rank`.
      user_embeddings: [B, D].
      items: rows of the item table, [B, T].

    Raises:
      NonFiniteScores: naming of how many users, and the first.
    """
    cut = grid(mesh, len(item_embeddings), len(item_embeddings))
    (count, width), shards = items.shape, cut.mesh.shape["user"]
    more = 0, -count % (USER_TILE * shards)
    vectors = put(np.pad(user_embeddings, (more, (0, 0)), mode="edge"), cut.sharding("user"))
    # In buckets, so that other numbers of items seldom make another program.
    wanted = np.pad(items, (more, (0, bucket(width) - width)))
    scores = fetch(_own(pairs, cut, params, vectors, item_embeddings, wanted))[:count, :width]
    _check_finite((~np.isfinite(scores)).sum(axis=1), np.arange(count))
    return scores


def masked_items(history: Sequences, targets: Sequences, num_items: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns user and item of what is masked, sorted: the history less the targets. Counts the targets it held."""

    def keys(sequences: Sequences) -> np.ndarray:
        user = np.repeat(np.arange(len(sequences.offsets) - 1), np.diff(sequences.offsets))
        return np.unique(user * np.int64(num_items) + sequences.items)

    seen, wanted = keys(history), keys(targets)
    kept = np.setdiff1d(seen, wanted, assume_unique=True)
    user, item = np.divmod(kept, num_items)
    return user, item, len(seen) - len(kept)


def _own(
    pairs: Pairs, cut: Grid, params: Any, vectors: jax.Array, item_embeddings: np.ndarray, wanted: np.ndarray
) -> jax.Array:
    """The scores of the items wanted by each user [B, T]: those items are a small catalogue of their own."""
    items, place = np.unique(wanted, return_inverse=True)
    items = np.pad(items, (0, bucket(len(items), ITEM_TILE) - len(items)))
    few, where = put(item_embeddings[items], cut.sharding()), put(place.reshape(wanted.shape), cut.sharding("user"))
    return _scores_at(pairs, cut, params, vectors, few, where)


def _check_finite(not_finite: np.ndarray, users: np.ndarray) -> None:
    if not_finite.any():
        raise NonFiniteScores(
            f"scores of {np.count_nonzero(not_finite)} users are NaN or infinite, the first is user row "
            f"{users[np.argmax(not_finite > 0)]}: the model has diverged, or its vectors are not finite"
        )


def _tile(pairs: Pairs, params: Any, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
    # float32 all through: the default of some devices rounds the factors, which makes ties.
    with jax.default_matmul_precision("highest"):
        return pairs(params, user_embeddings, item_embeddings).astype(jnp.float32)


def _tiled(array: jax.Array, size: int) -> jax.Array:
    return array.reshape(-1, size, *array.shape[1:])


_USER, _ITEM, _BOTH, _PLACES, _WHOLE = (
    PartitionSpec(*axes) for axes in (("user",), ("item",), ("item", "user"), ("user", "item"), ())
)


@partial(jax.jit, static_argnums=(0, 1))
def _scores_at(
    pairs: Pairs, cut: Grid, params: Any, user_embeddings: jax.Array, item_embeddings: jax.Array, place: jax.Array
) -> jax.Array:
    """Scores of each user at places [B, T] of item embeddings [N, D] that every device has."""

    def local(params: Any, user_embeddings: jax.Array, item_embeddings: jax.Array, place: jax.Array) -> jax.Array:
        items = _tiled(item_embeddings, ITEM_TILE)

        def of_users(part: tuple[jax.Array, jax.Array]) -> jax.Array:
            users, place = part
            scores = jax.lax.map(lambda some: _tile(pairs, params, users, some), items)
            return scores[place // ITEM_TILE, jnp.arange(USER_TILE)[:, None], place % ITEM_TILE]

        return jax.lax.map(of_users, (_tiled(user_embeddings, USER_TILE), _tiled(place, USER_TILE))).reshape(
            place.shape
        )

    return jax.shard_map(
        local, mesh=cut.mesh, in_specs=(_WHOLE, _USER, _WHOLE, _USER), out_specs=_USER, check_vma=False
    )(params, user_embeddings, item_embeddings, place)


class _Found(NamedTuple):
    """The counts and lists of each device over its own items so far.

    Attributes:
      more, same: [parts, B, T] scores above the target's, and equal to it.
      bad: [parts, B] tiles that have a score which is not finite.
      values, items: [parts, B, K] its best.
    """

    more: jax.Array
    same: jax.Array
    bad: jax.Array
    values: jax.Array
    items: jax.Array


@partial(jax.jit, static_argnums=(0, 2))
def _start(cut: Grid, own: jax.Array, top: int) -> _Found:
    parts, (users, targets) = cut.mesh.shape["item"], own.shape
    nothing = _Found(
        jnp.zeros((parts, users, targets), jnp.int32),
        jnp.zeros((parts, users, targets), jnp.int32),
        jnp.zeros((parts, users), jnp.int32),
        jnp.full((parts, users, top), -jnp.inf),
        jnp.full((parts, users, top), -1, jnp.int32),
    )
    return jax.lax.with_sharding_constraint(nothing, cut.sharding("item", "user"))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _chunk(
    pairs: Pairs,
    cut: Grid,
    params: Any,
    found: _Found,
    user_embeddings: jax.Array,
    item_embeddings: jax.Array,
    allowed: jax.Array,
    own: jax.Array,
    wanted: jax.Array,
    row: jax.Array,
    column: jax.Array,
    number: jax.Array | int,
) -> _Found:
    """Counts over the chunk of this number of every device's items."""

    def local(
        params: Any,
        found: _Found,
        user_embeddings: jax.Array,
        item_embeddings: jax.Array,
        allowed: jax.Array,
        own: jax.Array,
        wanted: jax.Array,
        row: jax.Array,
        column: jax.Array,
        number: jax.Array,
    ) -> _Found:
        more, same, bad, values, items = (a[0] for a in found)
        within = number * cut.width
        first = jax.lax.axis_index("item") * cut.part + within
        here = item_embeddings[0], allowed[0]
        if cut.chunks > 1:
            here = tuple(jax.lax.dynamic_slice_in_dim(a, within, cut.width) for a in here)
        tiles = (*(_tiled(a, ITEM_TILE) for a in here), first + jnp.arange(0, cut.width, ITEM_TILE))
        keep = items.shape[1] > 0

        def of_users(part: Any) -> Any:
            users, row, column = part

            def add(total: _Counts, tile: Any) -> tuple[_Counts, jax.Array | None]:
                items, ranked, first, row, column = tile
                counts, scores = _count(pairs, params, users, items, ranked, first, row, column, keep)
                return jax.tree.map(jnp.add, total, counts), scores

            nothing = _Counts(jnp.zeros_like(users[2]), jnp.zeros_like(users[2]), jnp.zeros(USER_TILE, jnp.int32))
            counts, scores = jax.lax.scan(add, nothing, (*tiles, row, column))
            return counts, None if scores is None else scores.transpose(1, 0, 2).reshape(USER_TILE, -1)

        users = tuple(_tiled(a, USER_TILE) for a in (user_embeddings, own, wanted))
        counts, scores = jax.tree.map(
            lambda a: a.reshape(-1, *a.shape[2:]), jax.lax.map(of_users, (users, row[0, 0], column[0, 0]))
        )
        more, same, bad = more + counts.more, same + counts.same, bad + counts.bad
        if scores is not None:
            values, items = _best(values, items, scores, first)
        return _Found(*(a[None] for a in (more, same, bad, values, items)))

    specs = (_WHOLE, _BOTH, _USER, _ITEM, _ITEM, _USER, _USER, _PLACES, _PLACES, _WHOLE)
    return jax.shard_map(local, mesh=cut.mesh, in_specs=specs, out_specs=_BOTH, check_vma=False)(
        params, found, user_embeddings, item_embeddings, allowed, own, wanted, row, column, jnp.asarray(number)
    )


@jax.jit
def _together(found: _Found) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Merges all devices: more and same [B, T], bad [B], the best items and their scores [B, K].

    At equal scores the earlier item comes first.
    """
    top = found.items.shape[2]
    values, items = (a.transpose(1, 0, 2).reshape(a.shape[1], -1) for a in (found.values, found.items))
    values, order = jax.lax.top_k(values, top)
    items = jnp.where(values == -jnp.inf, -1, jnp.take_along_axis(items, order, axis=1))
    return found.more.sum(0), found.same.sum(0), found.bad.sum(0), items, values


class _Counts(NamedTuple):
    """Counts of a tile: scores above each target's [B, T], equal to it [B, T], and whether any is not finite [B]."""

    more: jax.Array
    same: jax.Array
    bad: jax.Array


def _count(
    pairs: Pairs,
    params: Any,
    users: tuple[jax.Array, jax.Array, jax.Array],
    item_embeddings: jax.Array,
    allowed: jax.Array,
    first: jax.Array,
    row: jax.Array,
    column: jax.Array,
    keep: bool,
) -> tuple[_Counts, jax.Array | None]:
    """Compares the scores of one tile with those of its users' targets, where they come out: they never go to memory.

    Args:
      users: user embeddings [B, D], the targets' scores [B, T] and their items [B, T].
      item_embeddings, allowed, first: the tile's items, which of them are ranked, and the first one's row.
      row, column: masked places, [M], with rows outside for padding.
      keep: whether to return the scores too, [B, N], -inf where masked or not allowed.
    """
    user_embeddings, own, wanted = users
    found = _tile(pairs, params, user_embeddings, item_embeddings)
    broken = allowed & ~jnp.isfinite(found)
    scores = jnp.where(allowed, found, -jnp.inf)
    among, place = jnp.minimum(row, USER_TILE - 1), wanted - first
    hidden = scores[among, column]
    within = (place >= 0) & (place < ITEM_TILE)
    itself = jnp.take_along_axis(scores, jnp.where(within, place, 0), axis=1)

    def one(target: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        own, within, itself = target
        # One product sums both counts, exact in float32, and is NaN where a score is not finite.
        kinds = jnp.where(scores > own[:, None], 1.0, jnp.where(scores == own[:, None], 2.0 * ITEM_TILE, 0.0))
        sums = jnp.dot(jnp.where(broken, jnp.nan, kinds), jnp.ones(ITEM_TILE), precision="highest")
        same, more = jnp.divmod(jnp.nan_to_num(sums).astype(jnp.int32), 2 * ITEM_TILE)
        # A masked item is no rival, and the target is no rival of itself, even if its own score came out otherwise in
        # another program.
        more = more.at[row].add(-(hidden > own[among]).astype(jnp.int32), mode="drop") - (within & (itself > own))
        same = same.at[row].add(-(hidden == own[among]).astype(jnp.int32), mode="drop") - (within & (itself == own))
        return more, same, jnp.isnan(sums).astype(jnp.int32)

    more, same, bad = jax.lax.map(one, (own.T, within.T, itself.T))
    return _Counts(more.T, same.T, bad[0]), scores.at[row, column].set(-jnp.inf, mode="drop") if keep else None


def _best(values: jax.Array, items: jax.Array, scores: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Merges the chunk into the running lists [B, K]; of equal scores the earlier item comes first."""
    top = min(values.shape[1], scores.shape[1])
    new_values, new_items = jax.lax.top_k(scores, top)
    values = jnp.concatenate([values, new_values], axis=1)
    items = jnp.concatenate([items, new_items + low], axis=1)
    values, order = jax.lax.top_k(values, items.shape[1] - top)
    items = jnp.take_along_axis(items, order, axis=1)
    return values, jnp.where(values == -jnp.inf, -1, items)
