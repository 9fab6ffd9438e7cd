"""One mesh with the axes ("data", "model"), and rules that place arrays on it."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


class Spread(NamedTuple):
    """What a rule says where the axis is not its concern: the longest one that the mesh axis divides is cut over it.

    It adds to what the PartitionSpec of another rule cuts. An array without such an axis stays whole.

    Attributes:
      axis: of the mesh.
      smallest: arrays of fewer elements stay whole: to bring the parts together would take longer than they are worth.
    """

    axis: str
    smallest: int = 1


Rules: TypeAlias = "Sequence[tuple[str, PartitionSpec | Spread]]"

# Tables of vectors that are trained: of items, and of users where the user model is "mf" or "lightgcn".
ITEM_RULE = (r".*/ids/embedding", Spread("model"))
PEOPLE_RULE = (r".*/users/(table/embedding|user|item)", Spread("model"))
# Fully sharded (Rajbhandari et al. 2020, ZeRO stage 3, arXiv 1910.02054): every device that has examples of its own
# holds a part of every array of size, and XLA gathers what a layer needs when it needs it.
FULLY_SHARDED = (r".*", Spread("data", smallest=2**12))


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


def specs(tree: Any, mesh: Mesh, rules: Rules = (), strict: bool = True) -> Any:
    """The PartitionSpec of every array, by the rules whose regex matches its path in full.

    The first PartitionSpec that matches decides; with none, an array is replicated. Each `Spread` that matches cuts
    one axis more.

    Args:
      tree: of arrays, or of their shapes.
      mesh, rules: what the specs are for.
      strict: False for what follows parameters without being like them, as optimizer states do: a PartitionSpec cuts
        of it what can be cut, and a rule may match nothing.

    Raises:
      ValueError: a rule matches no array (the message lists what exists), or the mesh does not divide an axis.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [path_name(path) for path, _ in leaves]
    for pattern, _ in rules if strict else ():
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(f"sharding rule {pattern!r} matches no parameter; there are: {', '.join(names)}")
    return structure.unflatten(
        _spec(name, np.shape(array), mesh, rules, strict) for name, (_, array) in zip(names, leaves, strict=True)
    )


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
        if isinstance(rule, Spread) and rule.axis not in axes and np.prod(shape) >= rule.smallest:
            fitting = [i for i, size in enumerate(shape) if axes[i] is None and size % mesh.shape[rule.axis] == 0]
            if fitting:
                axes[max(fitting, key=lambda i: shape[i])] = rule.axis
    return PartitionSpec(*axes)


def shardings(tree: Any, mesh: Mesh, rules: Rules = (), strict: bool = True) -> Any:
    """Where each array of a tree belongs; see `specs`."""
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


def agreed(value: bool) -> bool:
    """What the first process says: the others may see a file of it later than it does."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))
