"""Names of sites, trees that go by them, and what a delta says of the encoder."""

import jax.numpy as jnp
import pytest

from llm4rec_jax.peft.sites import constant_below, match, parts_of, replace, sites


def test_match():
    names = [f"layer_{i}/{n}" for i in range(12) for n in ("query", "query_norm")]
    assert match(r"layer_1/.*", names) == ["layer_1/query", "layer_1/query_norm"]
    assert match(r".*/query", names) == names[::2]
    assert match(r"layer_-[12]/query", [*names, "embeddings/word"]) == ["layer_10/query", "layer_11/query"]
    with pytest.raises(
        ValueError, match=r"^target 'query' matches nothing; there are: layer_N/query, layer_N/query_norm$"
    ):
        match("query", names)
    with pytest.raises(ValueError, match=r"target '\(' is not a regular expression"):
        match("(", names)
    with pytest.raises(ValueError, match="there are: no sites at all"):
        match(".*", [])
    with pytest.raises(ValueError, match=r"target .* repeats what repeats, or has more than 4"):
        match(r"([\w/]+)+!", names)


def test_sites():
    tree = {"a": {"kernel": 1, "b": {"kernel": 2, "bias": 3}}, "c": {"bias": {"kernel": 4}}}
    assert set(sites(tree)) == {"a", "a/b", "c", "c/bias"}
    assert set(sites(tree, "kernel")) == {"a", "a/b", "c/bias"}
    assert set(sites(tree, "bias")) == {"a/b"}


def test_replace_copies_what_it_changes():
    tree = {"a": {"b": {"kernel": 1, "bias": 2}, "c": {"kernel": 3}}}
    new = replace(tree, {"a/b": {"bias": 9}})
    assert new == {"a": {"b": {"kernel": 1, "bias": 9}, "c": {"kernel": 3}}}
    assert tree == {"a": {"b": {"kernel": 1, "bias": 2}, "c": {"kernel": 3}}}
    assert new["a"]["c"] is tree["a"]["c"]


LORA = {"a": jnp.zeros(2)}


@pytest.mark.parametrize(
    ("delta", "constant"),
    [
        ({}, (6, False)),
        ({"encoder": {}}, (6, False)),
        ({"users": {"layer_0/attention/query": LORA}}, (6, False)),
        ({"encoder": {"layer_3/attention/query": LORA, "layer_10/ffn": LORA}}, (3, False)),
        ({"encoder": {"layer_3/ffn": LORA, "embeddings/word": LORA}}, (0, False)),
        ({"encoder": {"layer_3/ffn": LORA, "shared": LORA}}, (3, False)),
        ({"encoder": {"layer_3/ffn": LORA, ".layers/1": LORA}}, (0, False)),
        ({"encoder": {".layers/1": LORA, ".layers/out": LORA}}, (6, True)),
        ({"encoder": {"0": {"layer_4/ffn": LORA}, "1": {"layer_2/ffn": LORA}}}, (2, False)),
        ({"0": {"encoder": {"layer_4/ffn": LORA}}, "1": {"users": {"layer_2/ffn": LORA}}}, (4, False)),
        ({"encoder/layer_5/ffn": LORA, "users/layer_1/ffn": LORA}, (5, False)),
        ({"encoder.layers/1": LORA}, (6, True)),
    ],
)
def test_what_of_the_encoder_a_delta_leaves_constant(delta, constant):
    assert constant_below(delta, 6) == constant


@pytest.mark.parametrize(
    ("delta", "parts"),
    [
        ({}, set()),
        ({"encoder": {}}, {"encoder"}),
        ({"0": {"encoder": {}}, "1": {"users": {}}}, {"encoder", "users"}),
        ({"encoder": {"layer_0/ffn": LORA, "shared": LORA}}, {"encoder"}),
        ({"0": {"encoder": {"layer_4/ffn": LORA}}, "1": {"users": {"0": {"layer_2/ffn": LORA}}}}, {"encoder", "users"}),
        ({"encoder.layers/1": LORA, "users/layer_1/ffn": LORA}, {"encoder", "users"}),
    ],
)
def test_the_parts_that_a_delta_adapts(delta, parts):
    assert parts_of(delta) == parts


def test_a_target_counts_blocks_from_one_end():
    names = ["layer_0/up", "layer_1/up", "layer_2/up"]
    assert match("layer_-[12]/up", names) == names[1:]
    with pytest.raises(ValueError, match="counts blocks from both ends: count them all from one"):
        match("layer_0/up|layer_-1/up", names)
