"""Rows of arrays in parts that are computed one after another, in the memory of one part."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def split_rows(
    array: jax.Array, parts: int, mesh: Mesh | None = None, axis: str = "data", repeat: bool = True
) -> jax.Array:
    """Splits rows [R, …] into parts [parts, K, …], padded at the end.

    Args:
      array: Rows.
      parts: Number of parts.
      mesh: Devices.
      axis: Axis of the mesh that the rows of each part are divided over.
      repeat: Whether padding repeats the last row; else it is -1.

    Example:
      >>> split_rows(jnp.arange(5), 2).tolist(), split_rows(jnp.arange(5), 2, repeat=False).tolist()
      ([[0, 1, 2], [3, 4, 4]], [[0, 1, 2], [3, 4, -1]])
    """
    devices = 1 if mesh is None else mesh.shape[axis]
    rows = -(-len(array) // (parts * devices)) * devices
    widths = [(0, rows * parts - len(array)), *[(0, 0)] * (array.ndim - 1)]
    padded = jnp.pad(array, widths, mode="edge") if repeat else jnp.pad(array, widths, constant_values=-1)
    split = padded.reshape(parts, rows, *array.shape[1:])
    if mesh is None:
        return split
    return jax.lax.with_sharding_constraint(split, NamedSharding(mesh, PartitionSpec(None, axis)))


def map_parts(
    function: Callable[[Any, jax.Array | None], jax.Array],
    rows: Any,
    key: jax.Array | None,
    parts: int,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Computes a function of rows part by part, and each part again for its gradient.

    Between the two passes only the rows and the function's values are kept, so memory is that of one part. For texts
    that are encoded this is gradient caching (Gao et al. 2021, arXiv 2101.06983).

    Args:
      function: (rows of one part, key of the part or None) to an array with as many rows.
      rows: Tree of arrays [R, …].
      key: Key of dropout, from which each part has its own, the same in both passes.
      parts: Number of parts; a single one is taken as two.
      mesh: Devices, over whose axis "data" the rows of each part are divided.

    Returns:
      The values of all rows, [R, …].
    """
    # Compilers take a loop of one round apart, and merge the two passes again.
    parts = max(parts, 2)
    keys = None if key is None else jax.random.split(key, parts)
    split = jax.tree.map(lambda array: split_rows(array, parts, mesh), rows)
    again = jax.checkpoint(lambda part: function(*part), prevent_cse=False)
    values = jax.lax.map(again, (split, keys))
    return values.reshape(-1, *values.shape[2:])[: len(jax.tree.leaves(rows)[0])]
