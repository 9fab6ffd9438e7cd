"""Parameters and optimizer states cut over the devices by rules: the same training in an n-th of the memory."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from llm4rec_jax import peft
from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.data.features.tokens import tokenise, tokenizer
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.base import TRANSFORMER_RULES
from llm4rec_jax.models.graphs.base import Edges
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.sharding import (
    FULLY_SHARDED,
    ITEM_RULE,
    USER_TABLE_RULE,
    ShardLongestAxis,
    digest,
    make_mesh,
    place,
    shardings,
    specs,
)
from llm4rec_jax.training import metric_writer as journal
from llm4rec_jax.training.checkpoint import Checkpoints
from llm4rec_jax.training.optimizer import optimizer
from tests.helpers import tiny
from tests.helpers.training import train

# Everything here is small, so nothing is too small to be cut.
ALL = (r".*", ShardLongestAxis("data"))
ONE, EIGHT, BOTH = (
    (make_mesh(devices=jax.devices()[:1]), ()),
    (make_mesh(), (ALL,)),
    (make_mesh(2), (*TRANSFORMER_RULES, ITEM_RULE, ALL)),
)


class Parts(NamedTuple):
    """The parts that all runs share."""

    split: Any
    tokens: Any
    model: Any
    params: dict[str, Any]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    split, folder = tiny.split(), tiny.encoder_folder(tmp_path_factory.mktemp("encoder"))
    texts = item_texts(split.dataset.items, "the {title}.")
    tokens = tokenise(texts, tokenizer(folder), 16, tmp_path_factory.mktemp("cache"))
    encoder, weights = pretrained.load(folder, layers=1)
    model = recommender(encoder=encoder, num_items=split.dataset.num_items, users="mean", width=16, project="linear")
    return Parts(split, tokens, model, init(model, jax.random.key(0), weights))


def run(parts: Parts, method: str, where: tuple, workdir: Path, steps: int = 3, **options: Any) -> Any:
    mesh, rules = where
    options = {"eval_every": 3, "log_every": 1, "metric": "ndcg@5", "batch_size": 16, "history": 8, **options}
    return train(
        parts.model, tiny.method(method), parts.params, parts.split, workdir,
        mesh=mesh, rules=rules, tokens=parts.tokens, steps=steps, dropout=False, learning_rate=1e-3, **options,
    )  # fmt: skip


def records(workdir: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in journal.read(workdir / "metrics.jsonl") if r["kind"] == kind]


def on_one_device(tree: Any) -> int:
    """Bytes of the first device's parts."""
    return sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(tree))


def whole(array: Any, devices: int = 8) -> bool:
    return not any(size % devices == 0 for size in np.shape(array))


def check(parts: Parts, method: str, tmp_path: Path, layouts: dict[str, tuple]) -> None:
    """Losses and gradients are those of one device; memory is an eighth but for what 8 do not divide."""
    ran = {name: run(parts, method, where, tmp_path / name) for name, where in {"one": ONE, **layouts}.items()}
    expected = records(tmp_path / "one", "train")
    for name in layouts:
        for found, wanted in zip(records(tmp_path / name, "train"), expected, strict=True):
            # The gradient of a parameter without influence, such as a key's bias, is rounding, whose size Adam
            # ignores: parameters are compared by the loss that follows from them.
            for figure in ("loss", "grad_norm"):
                np.testing.assert_allclose(found[figure], wanted[figure], rtol=1e-5, err_msg=f"{name} {figure}")
        assert [r["ndcg@5"] for r in records(tmp_path / name, "validation")] == [
            r["ndcg@5"] for r in records(tmp_path / "one", "validation")
        ]
    trainable, frozen = ran["one"].trainable, ran["one"].frozen
    tx = optimizer(tiny.method(method), trainable, learning_rate=1e-3, steps=3)
    state = {"trainable": trainable, "opt_state": jax.eval_shape(tx.init, trainable)}
    odd = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves((state, frozen)) if whole(a))
    if "eight" in layouts:
        one, eight = (records(tmp_path / name, "program")[0]["arguments"] for name in ("one", "eight"))
        print(f"{method}: {one:,} bytes of arguments, {eight:,} on each of 8 devices, {odd:,} of them undivided")
        # Key, rates and step are whole, and a few scalars are padded.
        assert abs(eight - (odd + (one - odd) / 8)) < 64
    if "both" in layouts:
        encoder = ran["both"].frozen["params"]["encoder"]
        kernel = encoder["layer_0"]["ffn"]["up"]["kernel"]
        assert kernel.sharding.spec == PartitionSpec("data", "model")
        assert 8 * on_one_device(kernel) == kernel.nbytes


def test_full_fine_tuning_on_both_axes(parts, tmp_path):
    check(parts, "full", tmp_path, {"both": BOTH})


def test_lora_fully_sharded(parts, tmp_path):
    check(parts, "lora", tmp_path, {"eight": EIGHT})


@pytest.mark.long
@pytest.mark.parametrize("method", sorted(peft.METHODS))
def test_every_method_on_either_and_both_axes(parts, tmp_path, method):
    check(parts, method, tmp_path, {"eight": EIGHT, "both": BOTH})


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """Random parameters and moments of full fine-tuning, as a run would save them."""
    key = jax.random.key(0)
    kernel, bias = {"kernel": jax.random.normal(key, (16, 32))}, {"bias": jax.random.normal(key, 5)}
    delta = {"encoder": {"layer_0/ffn/up": kernel, "layer_0/ffn/down": bias}}
    trainable = {"delta": delta, "params": {"ids": {"embedding": jax.random.normal(key, (40, 6))}}}
    tx = optax.adam(1e-3)
    _, moments = tx.update(trainable, tx.init(trainable))
    return {"step": jnp.int32(3), "trainable": trainable, "opt_state": moments}


LAYOUTS = {
    "one": ONE,
    "data": (make_mesh(), ()),
    "model": (make_mesh(4), (*TRANSFORMER_RULES[:1], ITEM_RULE)),
    "fully": EIGHT,
    "both": (make_mesh(2), (*TRANSFORMER_RULES[:1], ITEM_RULE, ALL)),
}


@pytest.mark.parametrize("written", LAYOUTS)
def test_a_checkpoint_of_one_layout_is_restored_into_any_other(state, tmp_path, written):
    digested = digest({})
    saved = Checkpoints(tmp_path, digested)
    saved.save("last", 3, place(state, *LAYOUTS[written]), {})
    saved.close()
    for mesh, rules in LAYOUTS.values():
        like = place(jax.tree.map(jnp.zeros_like, state), mesh, rules)
        checkpoints = Checkpoints(tmp_path, digested)
        found = checkpoints.restore("last", like).state
        checkpoints.close()
        jax.tree.map(np.testing.assert_array_equal, found, state)
        assert jax.tree.map(lambda a: a.sharding, found) == jax.tree.map(lambda a: a.sharding, like)


@pytest.mark.long
@pytest.mark.parametrize(("before", "after"), [(ONE, BOTH), (BOTH, ONE), (EIGHT, BOTH)])
def test_a_run_goes_on_in_another_layout(parts, tmp_path, before, after):
    run(parts, "full", ONE, tmp_path / "whole", steps=4)
    run(parts, "full", before, tmp_path / "moved", steps=2)
    run(parts, "full", after, tmp_path / "moved", steps=4)
    curves = [[r["loss"] for r in records(tmp_path / name, "train")] for name in ("whole", "moved")]
    np.testing.assert_allclose(*curves, rtol=1e-5)


def test_what_is_spread_is_cut_along_the_longest_axis_that_divides():
    mesh = make_mesh(2)  # 4 × 2
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in {"a": (6, 8, 16), "b": (6, 4), "c": (6, 3), "d": (), "e": (40,), "f": (2, 2)}.items()
    }
    rules = (
        ("a", PartitionSpec(None, None, "model")),
        (r".*", ShardLongestAxis("data", smallest=8)),
        ("[bf]", ShardLongestAxis("model")),
    )
    assert specs(shapes, mesh, rules) == {
        "a": PartitionSpec(None, "data", "model"),
        "b": PartitionSpec("model", "data"),
        "c": PartitionSpec(None, None),
        "d": PartitionSpec(),
        "e": PartitionSpec("data"),
        "f": PartitionSpec("model", None),
    }


def test_states_of_the_optimizer_lie_where_their_parameters_do():
    """Those of another shape, as of gradients of low rank, are cut where they can be, and nothing is refused."""
    rules = ((r".*/up/kernel", PartitionSpec(None, "model")),)
    state = {"mu/ffn/up/kernel": np.zeros((6, 8)), "basis/ffn/up/kernel": np.zeros((6, 3)), "rate": np.zeros(())}
    found = shardings(state, make_mesh(4), rules, strict=False)
    assert {name: place.spec for name, place in found.items()} == {
        "mu/ffn/up/kernel": PartitionSpec(None, "model"),
        "basis/ffn/up/kernel": PartitionSpec(None, None),
        "rate": PartitionSpec(),
    }
    with pytest.raises(ValueError, match="basis/ffn/up/kernel has an axis of 3, which the 4 devices"):
        shardings(state, make_mesh(4), rules)


@pytest.mark.parametrize("users", ["mf", "lightgcn"])
def test_tables_of_items_and_people_have_rules(users):
    edges = Edges(np.zeros(1, np.int32), np.zeros(1, np.int32))
    model = recommender(num_items=24, num_users=15, edges=edges, users=users, width=8)
    params = jax.eval_shape(lambda key: init(model, key), jax.random.key(0))
    rules = [USER_TABLE_RULE] if users == "lightgcn" else [ITEM_RULE, USER_TABLE_RULE]
    cut = {str(spec) for spec in jax.tree.leaves(specs({"params": params}, make_mesh(8), rules))}
    # 24 items are cut by rows, 15 people by width.
    assert cut >= {str(PartitionSpec("model", None)), str(PartitionSpec(None, "model"))}


def test_small_arrays_stay_whole_by_default():
    sizes = {"norm": np.zeros(1024), "kernel": np.zeros((64, 64))}
    assert specs(sizes, make_mesh(), (FULLY_SHARDED,)) == {
        "norm": PartitionSpec(None),
        "kernel": PartitionSpec("data", None),
    }
