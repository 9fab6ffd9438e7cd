"""Sites, the named places of a module that a method can change, and the parameter trees that are keyed by them."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm4rec_jax.models.layers.quantized import is_quantized
from llm4rec_jax.peft.patterns import matching
from llm4rec_jax.trees import flatten

Params = Mapping[str, Any]
Delta = dict[str, Any]
"""The arrays that a method trains: {site: {name: array}}. Arrays that several sites share are under "shared". The delta
of a chain is {"0": delta of the first method, "1": …}, that of a method within a part of a model {part: delta}."""


def sites(params: Params, leaf: str | None = None) -> dict[str, Params]:
    """Returns every module of a parameter tree by its path, or with `leaf` those that hold an array of that name.

    Example:
      >>> params = {"ffn": {"up": {"kernel": jax.numpy.ones((2, 8))}, "norm": {"scale": jax.numpy.ones(2)}}}
      >>> list(sites(params))
      ['ffn', 'ffn/up', 'ffn/norm']
      >>> list(sites(params, "kernel"))
      ['ffn/up']
    """
    modules: dict[str, Params] = {}

    def visit(path: str, node: Params) -> None:
        if path and (leaf is None or (leaf in node and not isinstance(node[leaf], Mapping))):
            modules[path] = node
        for name, child in node.items():
            if isinstance(child, Mapping):
                visit(f"{path}/{name}" if path else name, child)

    visit("", params)
    return modules


def stack(params: Params, method: str) -> tuple[int, int]:
    """Returns the depth and the width of the encoder that has these parameters.

    Raises:
      ValueError: the parameters are not those of an encoder; the message begins with the method's name.
    """
    blocks = [site for site in sites(params) if re.fullmatch(r"layer_\d+", site)]
    if not blocks or "embeddings" not in params:
        raise ValueError(f"{method}: reads the states of an encoder's blocks, and these parameters have none")
    return len(blocks), params["layer_0"]["attention"]["output"]["kernel"].shape[-1]


def match(target: str, names: Iterable[str], what: str = "target") -> list[str]:
    """Returns the names that a regular expression matches in full; with `layer_-` in it blocks count from the end.

    Raises:
      ValueError: it counts blocks from both ends, or matches none; then the message lists the names, with layer numbers
        folded.

    Example:
      >>> match(r".*/(query|value)", ["layer_0/query", "layer_0/key", "layer_0/value"])
      ['layer_0/query', 'layer_0/value']
      >>> match("layer_-1/.*", ["layer_0/query", "layer_1/query"])
      ['layer_1/query']
      >>> match("query", ["layer_0/query", "layer_1/query"])
      Traceback (most recent call last):
      ValueError: target 'query' matches nothing; there are: layer_N/query
    """
    names = list(names)
    if "layer_-" in target and re.search(r"layer_[\d\\(\[]", target):
        raise ValueError(f"{what} {target!r} counts blocks from both ends: count them all from one")
    called = dict(zip(_from_the_end(names) if "layer_-" in target else names, names, strict=True))
    try:
        matched = [called[name] for name in matching(target, called)]
    except ValueError as error:
        raise ValueError(f"{what} {target!r} {error}") from error
    if not matched:
        folded = dict.fromkeys(re.sub(r"layer_\d+", "layer_N", name) for name in names)
        raise ValueError(f"{what} {target!r} matches nothing; there are: {', '.join(folded) or 'no sites at all'}")
    return matched


def _from_the_end(names: list[str]) -> list[str]:
    """Returns the names with blocks counted from the end: of two blocks `layer_0` is `layer_-2`."""
    depth = 1 + max((int(found[1]) for name in names if (found := re.match(r"layer_(\d+)\b", name))), default=-1)
    return [re.sub(r"^layer_(\d+)\b", lambda found: f"layer_{int(found[1]) - depth}", name) for name in names]


def replace(params: Params, delta: Delta) -> dict[str, Any]:
    """Returns the parameters with the arrays of {site: {name: array}} in place of theirs.

    Example:
      >>> replace({"up": {"kernel": 1, "bias": 2}, "down": {"kernel": 3}}, {"up": {"bias": 9}})
      {'up': {'kernel': 1, 'bias': 9}, 'down': {'kernel': 3}}
    """
    tree = dict(params)
    for site, arrays in delta.items():
        node = tree
        for name in site.split("/"):
            node[name] = dict(node[name])
            node = node[name]
        node.update(arrays)
    return tree


def replace_kernels(params: Params, delta: Delta, merged: Callable[[jax.Array, Any], jax.Array]) -> dict[str, Any]:
    """Returns the parameters with `merged(kernel, arrays of the site)` as the kernel of every site of the delta."""
    linear = sites(params, "kernel")
    # A kernel in few bits is dequantised.
    return replace(
        params, {site: {"kernel": merged(jnp.asarray(linear[site]["kernel"]), w)} for site, w in delta.items()}
    )


def count(delta: Any) -> int:
    """Returns the number of trained scalars.

    Example:
      >>> count({"query": {"a": jax.numpy.ones((4, 2)), "b": jax.numpy.ones((2, 4))}})
      16
    """
    return sum(a.size for a in jax.tree.leaves(delta, is_leaf=is_quantized))


def parts_of(delta: Delta) -> set[str]:
    """Returns the parts of a recommender that a method is within, with or without arrays of its own there.

    Example:
      >>> sorted(parts_of({"0": {"encoder": {"layer_0": {"gate": jax.numpy.ones(2)}}}, "1": {"users": {}}}))
      ['encoder', 'users']
    """
    parts: set[str] = set()
    for name, part in delta.items():
        named = re.sub(r"^(\d+(/|$))+", "", name)
        parts |= {re.split(r"[/.]", named)[0]} if named else parts_of(part)
    return parts


class Reach(NamedTuple):
    """The part of the encoder that a delta changes.

    Attributes:
      first_trained_layer: The lowest block that the delta changes, or the depth when it changes none. The states before
        it are the same at every step, so they can be computed once.
      reads_all_layers: The delta reads the states of every block and changes none, as a side network does: all states
        are the same at every step.
    """

    first_trained_layer: int
    reads_all_layers: bool


def constant_below(delta: Delta, depth: int) -> Reach:
    """Returns which states of an encoder of `depth` blocks a recommender's delta leaves the same at every step.

    Example:
      >>> constant_below({"encoder": {"layer_4/ffn": {"down": jax.numpy.ones(2)}}}, depth=6)
      Reach(first_trained_layer=4, reads_all_layers=False)
      >>> constant_below({"encoder": {".layers/1": {"gate": jax.numpy.ones(2)}}}, depth=6)
      Reach(first_trained_layer=6, reads_all_layers=True)
    """
    lowest, beside, inside = depth, False, False
    for path in flatten(delta):
        if (m := re.fullmatch(r"(?:\d+/)*encoder/?(?:\d+/)*(.+)", path)) is None:
            continue
        site = m[1]
        if site.startswith(".layers"):
            beside = True
        elif not site.startswith("shared/"):
            layer = re.match(r"layer_(\d+)\b", site)
            lowest, inside = min(lowest, int(layer[1]) if layer else 0), True
    return Reach(0, False) if beside and inside else Reach(lowest, beside)


def copy_of(arrays: Params, site: str) -> dict[str, jax.Array]:
    """Returns copies of a module's own arrays, so that a trained copy shares no memory with what it started from.

    Raises:
      ValueError: one of them is in few bits.
    """
    if any(map(is_quantized, arrays.values())):
        raise ValueError(
            f"the weights of {site} are stored in few bits and cannot be trained: leave out config.encoder.quantize, "
            "or choose a method that adds to frozen weights, such as lora"
        )
    return {name: array.astype(jnp.float32).copy() for name, array in arrays.items() if isinstance(array, jax.Array)}
