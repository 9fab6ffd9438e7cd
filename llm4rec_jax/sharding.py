"""One mesh with the axes ("data", "model"), and rules that place arrays on it."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llm4rec_jax.trees import flatten


class ShardLongestAxis(NamedTuple):
    """The spec of a rule that leaves the axis open: the longest one that the mesh axis divides is cut over it.

    It adds to what the PartitionSpec of another rule cuts. An array without such an axis stays whole.

    Attributes:
      axis: of the mesh.
      smallest: arrays of fewer elements stay whole: to bring the parts together would take longer than they are worth.
    """

    axis: str
    smallest: int = 1


Rules: TypeAlias = "Sequence[tuple[str, PartitionSpec | ShardLongestAxis]]"

# Tables of vectors that are trained: of items, and of users where the user model is "mf" or "lightgcn".
ITEM_RULE = (r".*/ids/embedding", ShardLongestAxis("model"))
USER_TABLE_RULE = (r".*/users/(table/embedding|user|item)", ShardLongestAxis("model"))
# Fully sharded (Rajbhandari et al. 2020, ZeRO stage 3, arXiv 1910.02054): every device that has examples of its own
# holds a part of every array of size, and XLA gathers what a layer needs when it needs it.
FULLY_SHARDED = (r".*", ShardLongestAxis("data", smallest=2**12))


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


def specs(tree: Any, mesh: Mesh, rules: Rules = (), strict: bool = True) -> Any:
    """The PartitionSpec of every array, by the rules whose regex matches its path in full.

    The first PartitionSpec that matches decides; with none, an array is replicated. Each `ShardLongestAxis` that
    matches cuts one axis more.

    Args:
      tree: of arrays, or of their shapes.
      mesh, rules: Devices, and the rules that apply to them.
      strict: False for what follows parameters without being like them, as optimizer states do: a PartitionSpec cuts
        of it what can be cut, and a rule may match nothing.

    Raises:
      ValueError: a rule matches no array (the message lists what exists), or the mesh does not divide an axis.
    """
    leaves, structure = flatten(tree), jax.tree.structure(tree)
    for pattern, _ in rules if strict else ():
        if not any(re.fullmatch(pattern, name) for name in leaves):
            raise ValueError(f"sharding rule {pattern!r} matches no parameter; there are: {', '.join(leaves)}")
    return structure.unflatten(_spec(name, np.shape(array), mesh, rules, strict) for name, array in leaves.items())


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules, strict: bool) -> PartitionSpec:
    matching = [rule for pattern, rule in rules if re.fullmatch(pattern, name)]
    first = next((rule for rule in matching if isinstance(rule, PartitionSpec)), PartitionSpec())
    axes: list[Any] = [None] * len(shape)
    for i, (size, axis) in enumerate(zip(shape, first, strict=False)):
        if axis is None or size % mesh.shape[axis] == 0:
            axes[i] = axis
        elif strict:
            raise ValueError(
                f"{name} has an axis of {size}, which the {mesh.shape[axis]} devices of the mesh axis {axis!r} do not "
                "divide: change the rule or the mesh"
            )
    for rule in matching:
        if isinstance(rule, ShardLongestAxis) and rule.axis not in axes and np.prod(shape) >= rule.smallest:
            fitting = [i for i, size in enumerate(shape) if axes[i] is None and size % mesh.shape[rule.axis] == 0]
            if fitting:
                axes[max(fitting, key=lambda i: shape[i])] = rule.axis
    return PartitionSpec(*axes)


def shardings(tree: Any, mesh: Mesh, rules: Rules = (), strict: bool = True) -> Any:
    """Returns the sharding of each array of a tree; see `specs`."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree, mesh, rules, strict))


def put(array: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process holds whole, as one array over all their devices."""
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])


def place(tree: Any, mesh: Mesh, rules: Rules = (), strict: bool = True) -> Any:
    """The tree on the mesh as the rules have it; see `specs`."""
    return jax.tree.map(put, tree, shardings(tree, mesh, rules, strict))


def fetch(array: jax.Array) -> np.ndarray:
    """The whole array on this host, also when other processes hold parts of it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def digest(tree: Any) -> str:
    """Returns the SHA-256 over the names, types, shapes and bytes of a tree's arrays, wherever their parts are.

    Example:
      >>> digest({"a": np.zeros(2), "b": np.ones(1)}) == digest({"b": np.ones(1), "a": np.zeros(2)})
      True
      >>> digest({"a": np.zeros(2)}) == digest({"a": np.zeros(2, np.float32)})
      False
    """
    sha = hashlib.sha256()
    for path, array in flatten(tree).items():
        array = fetch(array) if isinstance(array, jax.Array) else np.asarray(array)
        sha.update(f"{path} {array.dtype} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)  # bfloat16 is no buffer
    return sha.hexdigest()


def broadcast_from_first(value: bool) -> bool:
    """Returns the first process's value in every process: the others may see its files later than it does."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))
