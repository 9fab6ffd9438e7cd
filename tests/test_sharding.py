"""Rules, what they do to arrays, and a loss that is the same on every mesh."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from llm4rec_jax.data.batching.batch import NOWHERE, Batch, TokenGroup
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.base import TRANSFORMER_RULES
from llm4rec_jax.sharding import make_mesh, place, specs
from llm4rec_jax.training.placement import place_batch, place_together
from llm4rec_jax.trees import flatten
from tests.conftest import random_bert

TREE = {"layer_0": {"query": {"kernel": np.arange(48.0).reshape(6, 8), "bias": np.arange(8.0)}, "norm": np.ones(8)}}


def shard_shapes(tree: dict) -> dict[str, tuple[int, ...]]:
    return {path: a.addressable_shards[0].data.shape for path, a in flatten(tree).items()}


def test_meshes():
    assert dict(make_mesh().shape) == {"data": 8, "model": 1}
    assert dict(make_mesh(4).shape) == {"data": 2, "model": 4}
    assert dict(make_mesh(2, jax.devices()[:2]).shape) == {"data": 1, "model": 2}
    for model in (0, 3, 16):
        with pytest.raises(ValueError, match=f"model axis of {model} does not divide the 8 devices"):
            make_mesh(model)


def test_the_first_rule_that_matches_in_full_decides():
    rules = (
        (r".*/query/kernel", PartitionSpec(None, "model")),
        (r".*/kernel", PartitionSpec("model")),
        (r"layer_0/query/.*", PartitionSpec("data")),
    )
    assert specs(TREE, make_mesh(2), rules) == {
        "layer_0": {
            "query": {"kernel": PartitionSpec(None, "model"), "bias": PartitionSpec("data")},
            "norm": PartitionSpec(None),
        }
    }


@pytest.mark.parametrize("rule", ["query", r"layer_0/query", r".*/kernel/.*"])
def test_a_rule_that_matches_nothing_lists_what_there_is(rule):
    message = f"rule {rule!r} matches no parameter; there are: layer_0/norm, layer_0/query/bias, layer_0/query/kernel"
    with pytest.raises(ValueError, match=re.escape(message)):
        specs(TREE, make_mesh(), ((r".*/kernel", PartitionSpec()), (rule, PartitionSpec("model"))))


def test_arrays_are_cut_as_the_rules_say():
    rules = ((r".*/kernel", PartitionSpec(None, "model")), (r".*/bias", PartitionSpec("data")))
    placed = place(TREE, make_mesh(4), rules)
    expected = {"layer_0/query/kernel": (6, 2), "layer_0/query/bias": (4,), "layer_0/norm": (8,)}
    assert shard_shapes(placed) == expected
    jax.tree.map(np.testing.assert_array_equal, placed, TREE)
    assert set(shard_shapes(place(TREE, make_mesh(4))).values()) == {(6, 8), (8,)}


def test_an_axis_that_the_mesh_does_not_divide_is_refused():
    with pytest.raises(
        ValueError, match="layer_0/query/kernel has an axis of 6, which the 4 devices of the mesh axis 'model'"
    ):
        place(TREE, make_mesh(4), ((r".*/kernel", PartitionSpec("model")),))


def test_places_of_real_targets_stay_where_runs_of_other_widths_come_together():
    rng = np.random.default_rng(0)

    def of_width(width: int) -> Batch:
        mask = rng.random((8, width)) < 0.5
        real = np.full(50, NOWHERE, np.int32)
        real[: mask.sum()] = np.flatnonzero(mask)
        target = rng.integers(5, size=(8, width))
        return Batch(
            np.arange(8), np.arange(8), target, mask, target, mask, candidates=np.ones(8, bool), target_positions=real
        )

    batches = [of_width(3), of_width(6)]
    together = place_together(batches, Batch(*[0] * len(Batch._fields)), make_mesh(devices=jax.devices()[:1]))
    for k, batch in enumerate(batches):
        flat, real = np.asarray(together.target[k]).reshape(-1), np.asarray(together.target_positions[k])
        np.testing.assert_array_equal(flat[real[real != NOWHERE]], batch.target[batch.target_mask])
        assert np.asarray(together.target_mask[k]).reshape(-1)[real[real != NOWHERE]].all()


def test_a_batch_is_split_over_the_data_axis():
    rng = np.random.default_rng(0)
    batch = Batch(
        users=np.arange(8),
        items=np.arange(24),
        history=rng.integers(24, size=(8, 3)),
        history_mask=np.ones((8, 3), bool),
        target=rng.integers(24, size=(8, 1)),
        target_mask=np.ones((8, 1), bool),
        tokens=(TokenGroup(np.ones((24, 5)), np.ones((24, 5), bool)),),
    )
    placed = place_batch(batch, make_mesh(2))
    assert shard_shapes(placed) == {
        "users": (2,),
        "items": (6,),
        "history": (2, 3),
        "history_mask": (2, 3),
        "target": (2, 1),
        "target_mask": (2, 1),
        "tokens/0/ids": (6, 5),
        "tokens/0/mask": (6, 5),
    }
    jax.tree.map(np.testing.assert_array_equal, placed, batch)


@pytest.fixture(scope="module")
def loss_of(tmp_path_factory: pytest.TempPathFactory):
    """A BERT of which 8 devices divide everything, and a loss of its parameters and a batch."""
    folder: Path = tmp_path_factory.mktemp("bert")
    random_bert(vocab_size=96, num_hidden_layers=2, hidden_size=32, intermediate_size=64).save_pretrained(folder)
    encoder, params = pretrained.load(folder)

    def loss(params: dict, ids: jax.Array, mask: jax.Array) -> jax.Array:
        states = encoder.apply({"params": params}, ids, mask)
        return (jnp.square(states - 0.5) * mask[..., None]).sum((1, 2)).mean()

    rng = np.random.default_rng(0)
    ids = rng.integers(1, 96, (16, 12))
    return jax.jit(jax.value_and_grad(loss)), params, ids, np.arange(12) < rng.integers(1, 13, 16)[:, None]


@pytest.mark.parametrize("model", [1, 2, 8])
def test_a_loss_is_the_same_on_every_mesh(loss_of, model):
    loss, params, ids, mask = loss_of
    value, grads = loss(params, ids, mask)
    mesh = make_mesh(model)
    placed = place(params, mesh, TRANSFORMER_RULES)
    cut = shard_shapes(placed)
    assert cut["layer_0/ffn/up/kernel"] == (32, 64 // model)
    assert cut["layer_0/ffn/down/kernel"] == (64 // model, 32)
    assert cut["layer_1/attention/query/bias"] == (32 // model,)
    assert cut["embeddings/word/embedding"] == (96 // model, 32)
    assert cut["layer_1/ffn_norm/scale"] == (32,)
    data = jax.NamedSharding(mesh, PartitionSpec("data"))
    found, found_grads = loss(placed, jax.device_put(ids, data), jax.device_put(mask, data))
    np.testing.assert_allclose(found, value, rtol=1e-6)
    atol = 1e-5 * max(float(jnp.abs(a).max()) for a in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol), found_grads, grads)
