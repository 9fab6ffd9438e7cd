"""A function over many rows, in batches of one fixed shape.

A row's result depends neither on the rows beside it nor on the number of devices. Results go to the host block by
block while the next block is computed, so no device ever holds those of a whole catalogue.
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
from llm4rec_jax.inference.batch_sizes import num_streams, rows_per_batch
from llm4rec_jax.sharding import fetch, put

# Rows that a device computes before their results go to the host.
BLOCK = 16384

_T = TypeVar("_T")


def map_in_fixed_batches(
    function: Callable[..., jax.Array], mesh: Mesh, texts: bool = False, rows: int | None = None
) -> "FixedBatches":
    """Returns a callable that applies `function` to any number of rows, a fixed batch at a time, over all devices.

    Use it wherever a row's result must not depend on its neighbours, as in evaluation: XLA rounds differently for
    different shapes.

    Args:
      function: (params, *arrays [batch, …]) -> [batch, …].
      mesh: The devices; each works on a batch of its own.
      texts: Whether the first array is [n, L, …], of texts of L tokens. Batches of long texts have fewer rows.
      rows: Number of rows of a batch; None chooses it by the device.

    Returns:
      A callable (params, *numpy arrays [n, …]) -> [n, …] on the host.

    Example:
      >>> from llm4rec_jax.sharding import make_mesh
      >>> double = map_in_fixed_batches(lambda factor, x: factor * x, make_mesh())
      >>> double(2.0, np.arange(5.0)).tolist()
      [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    return FixedBatches(function, mesh, texts, rows)


class FixedBatches:
    """The callable that `map_in_fixed_batches` returns. It needs memory for two blocks of rows on each device."""

    def __init__(self, function: Callable[..., jax.Array], mesh: Mesh, texts: bool, rows: int | None) -> None:
        self._mesh, self._texts, self._rows, self._streams = mesh, texts, rows, num_streams(mesh)
        self._split = PartitionSpec(mesh.axis_names)
        split, whole = self._split, PartitionSpec()
        function = jax.jit(function)  # traced once, although its shape is asked for first

        @jax.jit
        def run(params: Any, count: int | jax.Array, *arrays: jax.Array) -> jax.Array:
            def local(params: Any, count: int | jax.Array, *arrays: jax.Array) -> jax.Array:
                def one(i: jax.Array, out: jax.Array) -> jax.Array:
                    return out.at[i].set(function(params, *(a[i] for a in arrays)))

                made = jax.eval_shape(function, params, *(a[0] for a in arrays))
                # Batches beyond `count` are padding, and are not computed.
                return jax.lax.fori_loop(0, count, one, jnp.zeros((len(arrays[0]), *made.shape), made.dtype))

            specs = (whole, whole, *(split for _ in arrays))
            over = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
            return over(params, count, *arrays)

        self._run = run

    def __call__(self, params: Any, *arrays: Array) -> np.ndarray:
        """Arrays [n, …] to [n, …]."""
        return next(self.each(params, [arrays]))

    def each(self, params: Any, calls: Iterable[Sequence[Array]]) -> Iterator[np.ndarray]:
        """Yields the results of several calls in order. The device works on the next while one is yielded."""
        parts = []
        for block, is_last in _one_ahead(self._blocks(params, calls)):
            parts += [part.on_host() for part in block]
            if is_last:
                yield np.concatenate(parts) if len(parts) > 1 else parts[0]
                parts = []

    def _blocks(self, params: Any, calls: Iterable[Sequence[Array]]) -> Iterator[tuple[list["_Part"], bool]]:
        """Yields the started blocks of all calls, a part a stream, and whether each is the last of its call."""
        most, load = BLOCK * self._mesh.size, [0] * self._streams
        for arrays in calls:
            n = len(arrays[0])
            for start in range(0, max(n, 1), most):
                yield self._start(params, [a[start : start + most] for a in arrays], load), start + most >= n

    def _start(self, params: Any, arrays: Sequence[Array], load: list[int]) -> list["_Part"]:
        """Starts a block. Its largest part goes to the stream with the least load, in tokens or rows.

        With batches of 4 rows, 2 streams, 1 device and 21 rows there are 6 batches, 3 a stream: rows 0 … 11 are the
        first part and 12 … 20 the second. Both are padded to 4 batches, a power of two, so that few shapes compile.
        """
        n, devices = len(arrays[0]), self._mesh.size
        of_device = rows_per_batch(self._mesh, arrays[0].shape[1]) if self._texts else rows_per_batch(self._mesh)
        rows = self._rows or of_device
        per_stream = -(-n // (rows * devices * self._streams))  # batches of a device in a stream
        padded, rows_of_part = 1 << max(per_stream - 1, 0).bit_length(), max(per_stream, 1) * rows * devices
        starts = range(0, max(n, 1), rows_of_part)
        parts = [[a[i : i + rows_of_part] for a in arrays] for i in starts]
        width = arrays[0].shape[1] if self._texts else 1
        started = []
        for stream, part in zip(np.argsort(load, kind="stable"), parts, strict=False):
            started.append(self._start_part(int(stream), rows, padded, params, part))
            load[stream] += len(part[0]) * width
        return started

    def _start_part(self, stream: int, rows: int, padded: int, params: Any, arrays: Sequence[Array]) -> "_Part":
        n, devices = len(arrays[0]), self._mesh.size
        count = -(-n // (rows * devices))  # batches of a device
        laid = []
        for array in arrays:
            whole = np.pad(array, ((0, count * rows * devices - n), *((0, 0),) * (array.ndim - 1)), mode="edge")
            by_device = whole.reshape(devices, count, rows, *array.shape[1:])
            by_device = np.pad(by_device, ((0, 0), (0, padded - count), *((0, 0),) * array.ndim))
            laid.append(put(by_device.reshape(-1, rows, *array.shape[1:]), NamedSharding(self._mesh, self._split)))
        if self._streams == 1:
            made = self._run(params, count, *laid)
        else:
            # Programs started by one thread run one after another. A call returns when its program is compiled, so no
            # two streams compile the same one.
            made = _threads(self._streams)[stream].submit(self._run, params, count, *laid).result()
        return _Part(made, devices, padded, count, n)


@functools.cache
def _threads(count: int) -> list[ThreadPoolExecutor]:
    """Returns the threads of the streams, the same ones at each call."""
    return [ThreadPoolExecutor(1, thread_name_prefix="stream") for _ in range(count)]


class _Part(NamedTuple):
    """Results that may still be being computed.

    Attributes:
      results: [devices · padded, batch, …]; the first `batches` of each device hold rows.
      rows: Number of rows, the padding of the last batch not counted.
    """

    results: jax.Array
    devices: int
    padded: int
    batches: int
    rows: int

    def on_host(self) -> np.ndarray:
        """Waits for the rows and returns them, [rows, …]."""
        out = fetch(self.results)
        out = out.reshape(self.devices, self.padded, *out.shape[1:])[:, : self.batches]
        return out.reshape(-1, *out.shape[3:])[: self.rows]


def _one_ahead(started: Iterator[_T]) -> Iterator[_T]:
    """Yields the same, each after its successor has been taken from the iterator."""
    held: deque[_T] = deque()
    for one in started:
        held.append(one)
        if len(held) > 1:
            yield held.popleft()
    yield from held
