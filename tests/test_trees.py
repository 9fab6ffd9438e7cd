"""Paths of arrays, and trees made flat and nested again."""

from typing import NamedTuple

import jax.numpy as jnp

from llm4rec_jax.trees import flatten, unflatten


class Pair(NamedTuple):
    first: object
    second: object


def test_every_kind_of_container_has_its_path():
    tree = {"b": [jnp.zeros(2), {"c": 1}], "a": Pair(2, (3,)), "none": None}
    assert list(flatten(tree)) == ["a/first", "a/second/0", "b/0", "b/1/c"]


def test_nested_dictionaries_come_back():
    tree = {"layer_0": {"ffn": {"up": {"kernel": 1, "bias": 2}}}, "scale": 3}
    assert unflatten(flatten(tree)) == tree
