"""The objective's softmax losses in blocks of candidates: the same numbers, in less memory, on any mesh."""

from typing import Any

import jax
import numpy as np
import pytest

from llm4rec_jax.data.batching.batch import NOWHERE, Batch
from llm4rec_jax.losses.ranking import LOSSES
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.peft import create
from llm4rec_jax.sharding import ITEM_RULE, make_mesh, place
from llm4rec_jax.tasks import ranking_objective
from llm4rec_jax.tasks.ranking_objective import Objective
from llm4rec_jax.training.placement import place_batch
from tests.tasks.test_ranking_objective import FROZEN, METHOD, MODEL, MODES, make, trainable

SOFTMAX = sorted(name for name, loss in LOSSES.items() if loss.logits is not None)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking_objective, "LARGEST_AT_ONCE", 0)
    monkeypatch.setattr(ranking_objective, "BLOCK_ON_CPU", 60)


def value_and_grad(objective: Objective, *arguments: Any) -> Any:
    return jax.jit(jax.value_and_grad(lambda *a: objective(*a, None)))(*arguments)


def test_the_losses_that_are_softmaxes():
    assert SOFTMAX == ["full_softmax", "in_batch", "info_nce", "mixed_negatives", "softmax", "softmax_log_q"]


@pytest.mark.parametrize("micro_batches", [1, 5])
@pytest.mark.parametrize("name", SOFTMAX)
def test_the_loss_and_its_gradients(request, name, micro_batches):
    batch = make(MODES[name])
    if micro_batches == 1 and MODES[name] != "sampled":
        places = np.full(16, NOWHERE, np.int32)
        places[: batch.target_mask.sum()] = np.flatnonzero(batch.target_mask)
        batch = batch._replace(target_positions=places)
    objective = Objective(MODEL, METHOD, LOSSES[name].bind(temperature=0.3), micro_batches=micro_batches)
    plain = value_and_grad(objective, trainable(), FROZEN, batch)
    request.getfixturevalue("small_blocks")
    blocks = value_and_grad(objective, trainable(), FROZEN, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), blocks, plain)


@pytest.mark.parametrize("head", ["cosine", "mlp"])
def test_any_head(request, head):
    model = recommender(num_items=12, users="mean", width=6, head=head)
    tree = {"delta": {}, "params": init(model, jax.random.key(0))}
    objective = Objective(model, METHOD, LOSSES["in_batch"])
    plain = value_and_grad(objective, tree, FROZEN, make("in_batch"))
    request.getfixturevalue("small_blocks")
    blocks = value_and_grad(objective, tree, FROZEN, make("in_batch"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), blocks, plain)


def catalogue(items: int, users: int, history: int) -> Batch:
    rng = np.random.default_rng(0)
    shape = (users, history)
    return Batch(
        users=np.arange(users, dtype=np.int32),
        items=np.arange(items, dtype=np.int32),
        history=rng.integers(items, size=shape).astype(np.int32),
        history_mask=np.ones(shape, bool),
        target=rng.integers(items, size=shape).astype(np.int32),
        target_mask=np.ones(shape, bool),
        candidates=np.ones(items, bool),
    )


@pytest.mark.parametrize("model_devices", [1, 4, 8])
def test_the_catalogue_is_divided_over_a_mesh(request, model_devices):
    model, batch = recommender(num_items=200, users="mean", width=8), catalogue(200, 8, 4)
    tree = {"delta": {}, "params": init(model, jax.random.key(0))}
    objective = Objective(model, METHOD, LOSSES["full_softmax"])
    plain = value_and_grad(objective, tree, FROZEN, batch)
    request.getfixturevalue("small_blocks")
    mesh = make_mesh(model_devices)
    placed = place(tree, mesh, (ITEM_RULE,)), FROZEN, place_batch(batch, mesh)
    found = value_and_grad(objective._replace(mesh=mesh), *placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, plain)


def step_bytes(items: int, positions: int, loss: str = "full_softmax") -> int:
    """Memory of a gradient by the compiler, arguments and result included."""
    model = recommender(num_items=items, users="mean", width=64)
    tree = {"delta": {}, "params": jax.eval_shape(lambda: init(model, jax.random.key(0)))}
    objective, batch = Objective(model, create("frozen"), LOSSES[loss]), catalogue(items, positions // 10, 10)
    if loss == "softmax":
        drawn = np.zeros((positions // 10, 10, 1000), np.int32)
        batch = batch._replace(candidates=None, negatives=drawn)
    step = jax.jit(jax.value_and_grad(lambda tree, batch: objective(tree, FROZEN, batch, None)))
    sizes = step.lower(tree, batch).compile().memory_analysis()
    return sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes


def test_a_million_items_take_two_gigabytes():
    matrix = 4 * 1_000_000 * 5_000
    assert step_bytes(1_000_000, 5_000) < 2e9 < matrix


def test_a_thousand_negatives_of_each_target_are_not_looked_up_at_once():
    looked_up = 4 * 5_000 * 1_000 * 64
    assert step_bytes(10_000, 5_000, "softmax") < looked_up / 4
