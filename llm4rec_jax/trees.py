"""Names of the arrays of a tree: paths such as "users/layer_0/ffn/up/kernel"."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a key path of jax.tree_util as "a/b/c".

    Example:
      >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"users": [{"bias": 0.5}]})
      >>> path_name(path)
      'users/0/bias'
    """
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def flatten(tree: Any) -> dict[str, Any]:
    """Returns the leaves of any tree by path, {"a/b/c": leaf}, dictionaries' keys in alphabetical order.

    Example:
      >>> flatten({"layer": {"kernel": 2.0, "bias": 1.0}, "scale": (3.0,)})
      {'layer/bias': 1.0, 'layer/kernel': 2.0, 'scale/0': 3.0}
    """
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dictionaries that `flatten` made flat.

    Example:
      >>> unflatten({"layer/bias": 1.0, "layer/kernel": 2.0})
      {'layer': {'bias': 1.0, 'kernel': 2.0}}
    """
    return traverse_util.unflatten_dict(dict(flat), sep="/")
