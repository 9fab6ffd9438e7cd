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

USER_TILE, ITEM_TILE = 256, 1024

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
      batch_size, chunk: users and items at a time, rounded up to whole tiles. Lists need memory of 4 bytes times their
        product, a few times over; ranks alone need a tile's. No result depends on them.
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
    # Without lists nothing is kept of a chunk but counts.
    chunk_tiles = min(-(-chunk // ITEM_TILE), tiles) if top else tiles
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
            masked = _places(padded, masked_user, masked_item, low, high)
            part = (contexts[low:high], allowed[low:high])
            above, level, bad, scores = _count(
                pairs, mesh, bool(top), params, vectors, own, wanted - low, masked, *part
            )
            more, same, not_finite = more + above, same + level, not_finite + bad
            if scores is not None:
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
    """Row and column of what is masked in each tile of `users` and [low, high), padded with rows outside of the tile.

    Returns:
      Two arrays [user tiles, item tiles, M].
    """
    starts, stops = np.searchsorted(masked_user, users), np.searchsorted(masked_user, users, side="right")
    lengths = stops - starts
    row = np.repeat(np.arange(len(users)), lengths)
    at = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(len(row))
    item = masked_item[at]
    keep = (item >= low) & (item < high)
    row, column = row[keep], item[keep] - low
    shape = len(users) // USER_TILE, (high - low) // ITEM_TILE
    tile = row // USER_TILE * shape[1] + column // ITEM_TILE
    order = np.argsort(tile, kind="stable")
    tile, counts = tile[order], np.bincount(tile, minlength=shape[0] * shape[1])
    slot = np.arange(len(tile)) - np.repeat(np.cumsum(counts) - counts, counts)
    widest = bucket(max(int(counts.max()), 1))
    rows = np.full((len(counts), widest), USER_TILE, np.int32)
    columns = np.zeros_like(rows)
    rows[tile, slot], columns[tile, slot] = row[order] % USER_TILE, column[order] % ITEM_TILE
    return rows.reshape(*shape, widest), columns.reshape(*shape, widest)


def _own(
    pairs: Pairs, mesh: Mesh, params: Any, vectors: jax.Array, contexts: jax.Array, wanted: np.ndarray
) -> jax.Array:
    """The scores of the items wanted by each user [B, T]: those items are a small catalogue of their own."""
    items, place = np.unique(wanted, return_inverse=True)
    items = np.pad(items, (0, bucket(len(items), ITEM_TILE) - len(items)))
    return _scores(pairs, mesh, params, vectors, contexts[items], place.reshape(wanted.shape))


def _check_finite(not_finite: np.ndarray, users: np.ndarray) -> None:
    if not_finite.any():
        raise NonFiniteScores(
            f"{not_finite.sum()} scores are NaN or infinite, the first for user row "
            f"{users[np.argmax(not_finite > 0)]}: the model has diverged, or its vectors are not finite"
        )


def _tile(pairs: Pairs, params: Any, profiles: jax.Array, contexts: jax.Array) -> jax.Array:
    # float32 all through: the default of some devices rounds the factors, which makes ties.
    with jax.default_matmul_precision("highest"):
        return pairs(params, profiles, contexts).astype(jnp.float32)


def _tiled(array: jax.Array, size: int) -> jax.Array:
    return array.reshape(-1, size, *array.shape[1:])


@partial(jax.jit, static_argnames=("pairs", "mesh"))
def _scores(
    pairs: Pairs, mesh: Mesh, params: Any, profiles: jax.Array, contexts: jax.Array, columns: jax.Array
) -> jax.Array:
    """Scores [B, N] at each user's columns, [B, T]."""

    def local(params: Any, profiles: jax.Array, contexts: jax.Array, columns: jax.Array) -> jax.Array:
        items = _tiled(contexts, ITEM_TILE)

        def row(part: tuple[jax.Array, jax.Array]) -> jax.Array:
            users, columns = part
            tiles = jax.lax.map(lambda some: _tile(pairs, params, users, some), items)
            return tiles[columns // ITEM_TILE, jnp.arange(USER_TILE)[:, None], columns % ITEM_TILE]

        return jax.lax.map(row, (_tiled(profiles, USER_TILE), _tiled(columns, USER_TILE))).reshape(columns.shape)

    data, whole = PartitionSpec("data"), PartitionSpec()
    specs = (whole, data, whole, data)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=data, check_vma=False)(
        params, profiles, contexts, columns
    )


@partial(jax.jit, static_argnames=("pairs", "mesh", "keep"))
def _count(
    pairs: Pairs,
    mesh: Mesh,
    keep: bool,
    params: Any,
    profiles: jax.Array,
    own: jax.Array,
    wanted: jax.Array,
    masked: tuple[jax.Array, jax.Array],
    contexts: jax.Array,
    allowed: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """How the chunk's scores compare with those of the targets. Scores are counted where they come out, a tile at a
    time, so that they never go to memory.

    Args:
      keep: whether to return the scores.
      own, wanted: [B, T] scores of the targets, and their columns in the chunk, which may lie outside.
      masked: see `_places`.
      contexts, allowed: of the chunk, [N, D] and [N].

    Returns:
      Scores above each target's [B, T]; those of other items equal to it [B, T]; the allowed that are not finite [B];
      and scores [B, N], -inf where masked or not allowed, or None.
    """

    def tile(params: Any, users: Any, items: Any) -> Any:
        (profiles, own, wanted), (contexts, allowed, first, row, column) = users, items
        found = _tile(pairs, params, profiles, contexts)
        broken = allowed & ~jnp.isfinite(found)
        scores = jnp.where(allowed, found, -jnp.inf)
        among, place = jnp.minimum(row, USER_TILE - 1), wanted - first
        hidden = scores[among, column]
        within = (place >= 0) & (place < ITEM_TILE)
        itself = jnp.take_along_axis(scores, jnp.where(within, place, 0), axis=1)

        def one(target: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
            own, within, itself = target
            # Three counts in one sum, ten bits each: half a tile has 512 columns.
            kinds = jnp.where(scores > own[:, None], 1, jnp.where(scores == own[:, None], 1 << 10, 0))
            kinds += jnp.where(broken, 1 << 20, 0)
            sums = kinds.reshape(USER_TILE, -1, 512).sum(-1)
            more, same, bad = (part.sum(-1) for part in (sums & 1023, sums >> 10 & 1023, sums >> 20))
            # What is masked is no rival, nor is the target of itself, even if its own score came out otherwise in
            # another program.
            more = more.at[row].add(-(hidden > own[among]).astype(jnp.int32), mode="drop") - (within & (itself > own))
            same = same.at[row].add(-(hidden == own[among]).astype(jnp.int32), mode="drop") - (within & (itself == own))
            return more, same, bad

        more, same, bad = jax.lax.map(one, (own.T, within.T, itself.T))
        kept = scores.at[row, column].set(-jnp.inf, mode="drop") if keep else None
        return more.T, same.T, bad[0], kept

    def local(params: Any, *arrays: Any) -> Any:
        *users, row, column, contexts, allowed = arrays
        items = _tiled(contexts, ITEM_TILE), _tiled(allowed, ITEM_TILE), jnp.arange(0, len(contexts), ITEM_TILE)

        def add(total: Any, part: Any) -> Any:
            *counts, kept = part
            return jax.tree.map(jnp.add, total, tuple(counts)), kept

        def user_tile(part: Any) -> Any:
            users, row, column = part
            counts = jnp.zeros_like(users[2]), jnp.zeros_like(users[2]), jnp.zeros(USER_TILE, jnp.int32)
            counts, kept = jax.lax.scan(
                lambda total, some: add(total, tile(params, users, some)), counts, (*items, row, column)
            )
            return *counts, None if kept is None else kept.transpose(1, 0, 2).reshape(USER_TILE, -1)

        found = jax.lax.map(user_tile, ([_tiled(a, USER_TILE) for a in users], row, column))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)

    data, whole = PartitionSpec("data"), PartitionSpec()
    specs = (whole, data, data, data, data, data, whole, whole)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=data, check_vma=False)(
        params, profiles, own, wanted, *masked, contexts, allowed
    )


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
