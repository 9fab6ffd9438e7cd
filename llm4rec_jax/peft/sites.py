"""Names of the places that a method can change, and the trees that go by them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from llm4rec_jax.trees import flatten

Params = Mapping[str, Any]
Delta = dict[str, Any]
"""What a method trains: {site: {name: array}}, {"shared": …} being what several sites share; of a chain, {"0": delta
of the first, "1": …}; of a method within a part of a module, {part: delta}."""


def sites(params: Params, leaf: str | None = None) -> dict[str, Params]:
    """Every module of a parameter tree by path, {"layer_0/ffn/up": {"kernel": …}}; with `leaf`, those that hold it."""
    found: dict[str, Params] = {}

    def visit(path: str, node: Params) -> None:
        if path and (leaf is None or (leaf in node and not isinstance(node[leaf], Mapping))):
            found[path] = node
        for name, child in node.items():
            if isinstance(child, Mapping):
                visit(f"{path}/{name}" if path else name, child)

    visit("", params)
    return found


def stack(params: Params, method: str) -> tuple[int, int]:
    """Depth and width of the encoder whose parameters these are. Raises ValueError when they are of something else."""
    blocks = {int(found[1]) for site in sites(params) if (found := re.fullmatch(r"layer_(\d+)", site))}
    if not blocks or "embeddings" not in params:
        raise ValueError(f"{method}: reads the states of an encoder's blocks, and there is none here")
    return len(blocks), params["layer_0"]["attention"]["query"]["kernel"].shape[0]


def match(target: str, names: Iterable[str], what: str = "target") -> list[str]:
    """The names that the regular expression matches in full.

    Raises:
      ValueError: it matches none; the message lists what exists, with layer numbers folded.
    """
    names = list(names)
    try:
        matched = [name for name in names if re.fullmatch(target, name)]
    except re.error as error:
        raise ValueError(f"{what} {target!r} is not a regular expression: {error}") from error
    if not matched:
        folded = dict.fromkeys(re.sub(r"layer_\d+", "layer_N", name) for name in names)
        raise ValueError(f"{what} {target!r} matches nothing; there are: {', '.join(folded) or 'no sites at all'}")
    return matched


def replace(params: Params, delta: Delta) -> dict[str, Any]:
    """The parameters with the arrays of {site: {name: array}} in place of their own."""
    tree = dict(params)
    for site, arrays in delta.items():
        node = tree
        for name in site.split("/"):
            node[name] = dict(node[name])
            node = node[name]
        node.update(arrays)
    return tree


def count(delta: Any) -> int:
    """The number of trainable scalars."""
    return sum(a.size for a in jax.tree.leaves(delta))


def parts_of(delta: Delta) -> set[str]:
    """The parts of a recommender that its delta has arrays for: {"encoder"}, {"encoder", "users"}, …."""
    return {re.sub(r"^(\d+/)+", "", path).split("/")[0].split(".")[0] for path in flatten(delta)}


def constant_below(delta: Delta, depth: int) -> tuple[int, bool]:
    """What of the encoder's work a recommender's delta leaves the same at every step, as (layer, every).

    Args:
      delta: of a recommender; what it has outside the part "encoder" changes no state of the encoder.
      depth: the encoder's number of blocks.

    Returns:
      layer: the lowest block that is changed, or `depth` when none is; the states before it are constants.
      every: the delta reads the states of every block and changes none (a side network): all of them are constants.
    """
    lowest, beside, inside = depth, False, False
    for path in flatten(delta):
        if (found := re.fullmatch(r"(?:\d+/)*encoder/?(?:\d+/)*(.+)", path)) is None:
            continue
        if found[1].startswith(".layers"):
            beside = True
        elif not found[1].startswith("shared/"):
            layer = re.match(r"layer_(\d+)\b", found[1])
            lowest, inside = min(lowest, int(layer[1]) if layer else 0), True
    if beside and inside:
        return 0, False
    return lowest, beside


def copy_of(arrays: Params) -> dict[str, jax.Array]:
    """A module's own arrays, copied: a trained copy must not share memory with what it started from."""
    return {name: array.copy() for name, array in arrays.items() if isinstance(array, jax.Array)}
