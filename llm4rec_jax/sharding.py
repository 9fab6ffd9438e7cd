"""One mesh with the axes ("data", "model"), and rules that place arrays on it."""

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llm4rec_jax.data.batches import NOWHERE, Batch

Rules: TypeAlias = "Sequence[tuple[str, PartitionSpec]]"

# Megatron's split (Shoeybi et al. 2019, arXiv 1909.08053): projections into heads and into the hidden layer by column,
# those out of them by row, embeddings by vocabulary.
BERT_RULES: Rules = (
    (r".*layer_\d+/(attention|ffn)/(query|key|value|up)/kernel", PartitionSpec(None, "model")),
    (r".*layer_\d+/(attention|ffn)/(query|key|value|up)/bias", PartitionSpec("model")),
    (r".*layer_\d+/(attention|ffn)/(output|down)/kernel", PartitionSpec("model", None)),
    (r".*/word/embedding", PartitionSpec("model", None)),
)


def make_mesh(model: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices (or those given) as a mesh of (devices / model, model).

    Raises:
      ValueError: the number of devices is not a multiple of `model`.
    """
    devices = list(devices or jax.devices())
    if model < 1 or len(devices) % model:
        raise ValueError(f"a model axis of {model} does not divide the {len(devices)} devices")
    shape = (len(devices) // model, model)
    # Auto, not the default Explicit: under that, a gather from a sharded table must be spelled out.
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of a pytree as "a/b/c"."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def specs(tree: Any, rules: Rules) -> Any:
    """The PartitionSpec of every array: that of the first rule whose regex matches its path in full, else replicated.

    Raises:
      ValueError: a rule matches no array; the message lists what exists.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(f"sharding rule {pattern!r} matches no parameter; there are: {', '.join(names)}")

    def spec(path: tuple[Any, ...], _: Any) -> PartitionSpec:
        name = path_name(path)
        return next((s for pattern, s in rules if re.fullmatch(pattern, name)), PartitionSpec())

    return jax.tree_util.tree_map_with_path(spec, tree)


def put(array: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process holds whole, as one array over all their devices."""
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])


def place(tree: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """The tree on the mesh as the rules have it. An axis that the mesh axis does not divide is a ValueError."""

    def placed(path: tuple[Any, ...], array: Any, spec: PartitionSpec) -> Any:
        for size, axis in zip(np.shape(array), spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise ValueError(
                    f"{path_name(path)} has an axis of {size}, which the {mesh.shape[axis]} devices of the mesh axis "
                    f"{axis!r} do not divide: change the rule or the mesh"
                )
        return put(array, NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(placed, tree, specs(tree, rules))


def fetch(array: jax.Array) -> np.ndarray:
    """The whole array on this host, also when other processes hold parts of it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Splits examples and unique items over the data axis.

    With several processes each gives its own part: its examples, and the items that those point to. The parts are laid
    end to end, so positions in `items` move by what the processes before hold. A whole catalogue is the same in all.
    """
    processes, index = jax.process_count(), jax.process_index()
    whole = batch.candidates is not None and batch.own is None
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
    by_item = ("items", "tokens", "candidates", "log_q")
    return Batch(**{n: jax.tree.map(place_item if n in by_item else put, v) for n, v in batch._asdict().items()})


def place_together(batches: Sequence[Batch], axes: Any, mesh: Mesh) -> Batch:
    """Batches of several runs as one, for `vmap`, examples and unique items split over the data axis.

    Runs may differ in how many unique items, tokens or positions they have: the smaller are padded as `data.batches`
    pads, items with repeats that nothing points to, the rest with what a mask leaves out. One process only.

    Args:
      axes: a `Batch` with None in place of a field that all share, which is the first batch's then, and 0 elsewhere.
    """
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


def _stacked(field: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of one field, padded to one shape, along a new first axis."""
    shape = np.max([a.shape for a in arrays], axis=0)
    padded = []
    for array in arrays:
        missing = [(0, int(n)) for n in shape - array.shape]
        if field == "own":
            # Ascending, so what is no item stands in front.
            padded.append(np.pad(array, [missing[0], (missing[1][1], 0)], constant_values=-1))
        elif field == "real":
            padded.append(np.pad(array, missing, constant_values=NOWHERE))
        elif field in ("items", "tokens"):
            # A text of padding only would have no mean: rows repeat the last text, columns are padding.
            rows, *columns = missing
            wide = np.pad(array, [(0, 0), *columns])
            padded.append(np.pad(wide, [rows, *((0, 0) for _ in columns)], mode="edge"))
        else:
            padded.append(np.pad(array, missing))
    return np.stack(padded)
