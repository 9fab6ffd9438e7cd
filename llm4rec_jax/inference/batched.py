"""A function over many rows, in tiles of one fixed shape.

So a row's result does not depend on what else is computed with it, on how many devices, or in which batch. Results go
to the host block by block as they are computed, so that no device ever holds those of a whole catalogue: of a table of
vectors it is given the part that it works on.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm4rec_jax.data.batching.batch import Array
from llm4rec_jax.inference.batch_sizes import lanes, rows_of_a_tile
from llm4rec_jax.sharding import fetch, put

# Rows that a device computes before what it has goes to the host.
BLOCK = 16384

_T = TypeVar("_T")


class Tiled:
    """`function(params, *arrays)` over the first axis of the arrays, a tile at a time, tiles split over all devices.

    (params, *numpy arrays [n, …]) -> [n, …] on the host. Memory is that of twice `BLOCK` rows on each device, however
    many there are: a block goes to the host while the next is computed.

    Args:
      function: (params, *arrays [tile, …]) -> [tile, …].
      mesh: whose devices have a tile each at a time.
      texts: the first array is [n, L, …], of texts of L tokens: of long ones a tile has fewer.
    """

    def __init__(self, function: Callable[..., jax.Array], mesh: Mesh, texts: bool = False) -> None:
        self._mesh, self._texts, self._lanes = mesh, texts, lanes(mesh)
        self._split = PartitionSpec(mesh.axis_names)
        split, whole = self._split, PartitionSpec()
        function = jax.jit(function)  # is traced once though it is asked for its shape first

        @jax.jit
        def run(params: Any, tiles: int | jax.Array, *arrays: jax.Array) -> jax.Array:
            def local(params: Any, tiles: int | jax.Array, *arrays: jax.Array) -> jax.Array:
                def one(i: jax.Array, out: jax.Array) -> jax.Array:
                    return out.at[i].set(function(params, *(a[i] for a in arrays)))

                made = jax.eval_shape(function, params, *(a[0] for a in arrays))
                # Beyond the tiles that hold rows nothing is computed.
                return jax.lax.fori_loop(0, tiles, one, jnp.zeros((len(arrays[0]), *made.shape), made.dtype))

            specs = (whole, whole, *(split for _ in arrays))
            over = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
            return over(params, tiles, *arrays)

        self._run = run

    def __call__(self, params: Any, *arrays: Array) -> np.ndarray:
        return next(self.each(params, [arrays]))

    def each(self, params: Any, calls: Iterable[Sequence[Array]]) -> Iterator[np.ndarray]:
        """What each of these calls gives, in their order; the device has the next when one is given."""
        parts = []
        for block, is_last in _one_ahead(self._blocks(params, calls)):
            parts += [part.on_host() for part in block]
            if is_last:
                yield np.concatenate(parts) if len(parts) > 1 else parts[0]
                parts = []

    def _blocks(self, params: Any, calls: Iterable[Sequence[Array]]) -> Iterator[tuple[list["_Part"], bool]]:
        """The blocks of all calls, begun, a part in each lane, and whether each is its call's last."""
        most, given = BLOCK * self._mesh.size, [0] * self._lanes
        for arrays in calls:
            n = len(arrays[0])
            for start in range(0, max(n, 1), most):
                yield self._begin(params, [a[start : start + most] for a in arrays], given), start + most >= n

    def _begin(self, params: Any, arrays: Sequence[Array], given: list[int]) -> list["_Part"]:
        """Begins a block, whose largest part goes to the lane that has been given the fewest tokens, or rows."""
        n, devices = len(arrays[0]), self._mesh.size
        tile = rows_of_a_tile(self._mesh, arrays[0].shape[1]) if self._texts else rows_of_a_tile(self._mesh)
        most = -(-n // (tile * devices * self._lanes))  # tiles of a device in a lane
        # Room for powers of two tiles, so that few programs are compiled whatever the number of rows.
        room, rows = 1 << max(most - 1, 0).bit_length(), max(most, 1) * tile * devices
        starts = range(0, max(n, 1), rows)
        parts, width = [[a[i : i + rows] for a in arrays] for i in starts], arrays[0].shape[1] if self._texts else 1
        begun = []
        for lane, part in zip(np.argsort(given, kind="stable"), parts, strict=False):
            begun.append(self._begin_part(int(lane), tile, room, params, part))
            given[lane] += len(part[0]) * width
        return begun

    def _begin_part(self, lane: int, tile: int, room: int, params: Any, arrays: Sequence[Array]) -> "_Part":
        n, devices = len(arrays[0]), self._mesh.size
        each = -(-n // (tile * devices))  # tiles of a device
        laid = []
        for array in arrays:
            whole_tiles = np.pad(array, ((0, each * tile * devices - n), *((0, 0),) * (array.ndim - 1)), mode="edge")
            of_devices = whole_tiles.reshape(devices, each, tile, *array.shape[1:])
            spacious = np.pad(of_devices, ((0, 0), (0, room - each), *((0, 0),) * array.ndim))
            laid.append(put(spacious.reshape(-1, tile, *array.shape[1:]), NamedSharding(self._mesh, self._split)))
        if self._lanes == 1:
            made = self._run(params, each, *laid)
        else:
            # Programs that one thread has begun run one after another. A call returns when its program is compiled, so
            # that no two lanes compile the same.
            made = _threads(self._lanes)[lane].submit(self._run, params, each, *laid).result()
        return _Part(made, devices, room, each, n)


@functools.cache
def _threads(count: int) -> list[ThreadPoolExecutor]:
    """As many threads, the same ones for all."""
    return [ThreadPoolExecutor(1, thread_name_prefix="tiles") for _ in range(count)]


class _Part(NamedTuple):
    """Tiles that a device may still be computing: [devices · room, tile, …], of which `each` of a device hold rows."""

    tiles: jax.Array
    devices: int
    room: int
    each: int
    rows: int

    def on_host(self) -> np.ndarray:
        """The rows, [rows, …]."""
        out = fetch(self.tiles)
        out = out.reshape(self.devices, self.room, *out.shape[1:])[:, : self.each]
        return out.reshape(-1, *out.shape[3:])[: self.rows]


def _one_ahead(begun: Iterator[_T]) -> Iterator[_T]:
    """The same, each when the one after it has been taken from the iterator."""
    held: deque[_T] = deque()
    for one in begun:
        held.append(one)
        if len(held) > 1:
            yield held.popleft()
    yield from held
