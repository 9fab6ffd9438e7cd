"""Placement of training batches on a mesh."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm4rec_jax.data.batching.batch import BY_ITEM, NOWHERE, Batch, in_groups


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Splits examples and unique items over the data axis.

    With several processes each gives its own part: its examples, and the items that those point to. The parts are laid
    end to end, so positions in `items` move by what the processes before hold. A whole catalogue is the same in all.
    """
    processes, index = jax.process_count(), jax.process_index()
    whole = batch.candidates is not None and batch.user_items is None
    if processes > 1 and not whole:
        offset = index * len(batch.items)
        batch = batch._replace(
            history=batch.history + offset,
            target=batch.target + offset,
            negatives=None if batch.negatives is None else batch.negatives + offset,
        )
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def put(array: np.ndarray) -> jax.Array:
        shape = (array.shape[0] * processes, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, array, shape)

    def put_whole(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])

    place_item = put_whole if whole else put
    return Batch(**{n: jax.tree.map(place_item if n in BY_ITEM else put, v) for n, v in batch._asdict().items()})


def place_together(batches: Sequence[Batch], axes: Any, mesh: Mesh) -> Batch:
    """Batches of several runs as one, for `vmap`, examples and unique items split over the data axis.

    Runs may differ in how many unique items, tokens or positions they have: the smaller are padded as `data.batches`
    pads, items with repeats that nothing points to, the rest with what a mask leaves out. One process only.

    Args:
      axes: a `Batch` with None in place of a field that all share, which is the first batch's then, and 0 elsewhere.
    """
    if axes.items is not None:
        of_batches = ([np.shape(ids) for ids, _ in batch.tokens] for batch in batches)
        shapes = [np.max(group, axis=0).tolist() for group in itertools.zip_longest(*of_batches, fillvalue=(0, 0))]
        batches = [in_groups(batch, shapes) for batch in batches]
    if axes.target_positions is not None and batches[0].target_positions is not None:
        # Places of a flat [B · T]: where T grows, they move.
        wide = max(batch.target.shape[1] for batch in batches)
        batches = [batch._replace(target_positions=_in_rows_of(batch, wide)) for batch in batches]
    fields = {}
    for name, axis in axes._asdict().items():
        values = [getattr(batch, name) for batch in batches]
        if axis is None:
            spec = PartitionSpec("data")
            fields[name] = jax.tree.map(lambda a, spec=spec: jax.device_put(a, NamedSharding(mesh, spec)), values[0])
        else:
            sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
            fields[name] = jax.tree.map(
                lambda *arrays, n=name, to=sharding: jax.device_put(_stacked(n, arrays), to), *values
            )
    return Batch(**fields)


def _in_rows_of(batch: Batch, wide: int) -> np.ndarray:
    """Returns the `target_positions` of a batch when its targets [B, T] are padded to [B, wide].

    Targets [2, 3] padded to [2, 5]: place 4, which is row 1 column 1, becomes 1 * 5 + 1 = 6.
    """
    places, width = np.asarray(batch.target_positions), batch.target.shape[1]
    return np.where(places == NOWHERE, NOWHERE, places // width * wide + places % width).astype(np.int32)


def _stacked(field: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of one field, padded to one shape, along a new first axis."""
    shape = np.max([a.shape for a in arrays], axis=0)
    padded = []
    for array in arrays:
        missing = [(0, int(n)) for n in shape - array.shape]
        if field == "user_items":
            # Ascending, so what is no item stands in front.
            padded.append(np.pad(array, [missing[0], (missing[1][1], 0)], constant_values=-1))
        elif field == "target_positions":
            padded.append(np.pad(array, missing, constant_values=NOWHERE))
        elif field == "items":
            padded.append(np.pad(array, missing, mode="edge"))
        else:
            padded.append(np.pad(array, missing))
    return np.stack(padded)
