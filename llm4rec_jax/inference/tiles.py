"""The layout of users and items on the devices: tiles of one fixed shape, and where in them masked items are."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm4rec_jax.data.batching.buckets import bucket
from llm4rec_jax.sharding import put

USER_TILE, ITEM_TILE = 1024, 2048


class Grid(NamedTuple):
    """The layout of users and items on the devices.

    Attributes:
      mesh: of the axes "user" and "item": the catalogue is cut as far as it has tiles, what devices are left share the
        users.
      part: items of a device, padding included.
      width: items that it scores at a time.
    """

    mesh: Mesh
    part: int
    width: int

    @property
    def chunks(self) -> int:
        return self.part // self.width

    def sharding(self, *axes: str) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def lay(self, table: np.ndarray) -> jax.Array:
        """A table of the catalogue [I, …] as [parts, part, …], each device being given its own rows."""
        shape = (self.mesh.shape["item"], self.part, *table.shape[1:])

        def rows(index: Any) -> np.ndarray:
            found = np.zeros((1, *shape[1:]), table.dtype)
            (number, *_) = range(shape[0])[index[0]]
            own = table[number * self.part : (number + 1) * self.part]
            found[0, : len(own)] = own
            return found

        return jax.make_array_from_callback(shape, self.sharding("item"), rows)


def grid(mesh: Mesh, num_items: int, chunk: int) -> Grid:
    """Lays a catalogue out over all devices of a mesh, with at most `chunk` items or one tile at a time."""
    tiles = max(-(-num_items // ITEM_TILE), 1)
    parts = max(n for n in range(1, mesh.size + 1) if mesh.size % n == 0 and n <= tiles)
    own = -(-tiles // parts)
    chunks = -(-own // -(-chunk // ITEM_TILE))
    width = -(-own // chunks)
    over = Mesh(mesh.devices.reshape(-1, parts), ("user", "item"))
    return Grid(over, chunks * width * ITEM_TILE, width * ITEM_TILE)


def places(
    users: np.ndarray, masked_user: np.ndarray, masked_item: np.ndarray, cut: Grid
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yields the masked places of users, chunk by chunk: row and column in each tile of each device's scores.

    With tiles of 4 users and 8 items, 2 devices of 16 items, chunks of 16: user 5 and item 27 are user tile 1, row 1;
    device 27 // 16 = 1 and its item 27 % 16 = 11, so chunk 0, item tile 11 // 8 = 1 and column 11 % 8 = 3.

    Yields:
      Two arrays [shards, parts, user tiles, item tiles, M], padded to a bucket with rows outside of the tile.
    """
    shards, parts = cut.mesh.shape["user"], cut.mesh.shape["item"]
    high, wide = len(users) // shards // USER_TILE, cut.width // ITEM_TILE
    starts, stops = np.searchsorted(masked_user, users), np.searchsorted(masked_user, users, side="right")
    lengths = stops - starts
    row = np.repeat(np.arange(len(users)), lengths)
    at = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(len(row))
    part, item = np.divmod(masked_item[at], cut.part)
    chunk, column = np.divmod(item, cut.width)
    user_tile, row = np.divmod(row, USER_TILE)
    shard, user_tile = np.divmod(user_tile, high)
    item_tile, column = np.divmod(column, ITEM_TILE)
    shape = shards, parts, high, wide
    tile = np.ravel_multi_index((chunk, shard, part, user_tile, item_tile), (cut.chunks, *shape))
    order = np.argsort(tile, kind="stable")
    row, column, tile = row[order], column[order], tile[order]
    tiles = shards * parts * high * wide
    ends = np.searchsorted(tile, np.arange(cut.chunks * tiles + 1))
    nth = np.arange(len(tile)) - ends[tile]
    for first in range(0, cut.chunks * tiles, tiles):
        here = slice(ends[first], ends[first + tiles])
        size = bucket(max(int(np.diff(ends[first : first + tiles + 1]).max()), 1))
        pair = []
        for values, outside in ((row, USER_TILE), (column, 0)):
            table = np.full((tiles, size), outside, np.int32)
            table[tile[here] - first, nth[here]] = values[here]
            pair.append(put(table.reshape(*shape, size), cut.sharding("user", "item")))
        yield pair[0], pair[1]
