"""Texts encoded in micro-batches: the losses and gradients of all at once, in less memory."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.data.batching.batch import Batch, TokenGroup
from llm4rec_jax.losses.ranking import LOSSES
from llm4rec_jax.models.encoders.bert import Bert, BertConfig
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.peft import METHODS, Peft, create, within
from llm4rec_jax.peft.sites import constant_below
from llm4rec_jax.sharding import make_mesh, place
from llm4rec_jax.tasks.ranking_objective import Objective
from llm4rec_jax.training.placement import place_batch
from llm4rec_jax.training.task import partition_params
from tests.helpers import tiny
from tests.helpers.small import CONFIG, moved

USUAL = ("adalora", "dora", "full", "prefix")
"""Methods of several kinds: weights replaced, activations changed, tokens added, a penalty."""
RNG = np.random.default_rng(0)


def model(dropout: float = 0.0) -> Any:
    config = BertConfig(**CONFIG, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return recommender(encoder=Bert(config), users="mean", width=8, project="linear")


def texts(rows: int, length: int) -> TokenGroup:
    mask = np.arange(length) < RNG.integers(1, length + 1, rows)[:, None]
    return TokenGroup((RNG.integers(1, CONFIG["vocab_size"], mask.shape) * mask).astype(np.int32), mask)


GROUPS = (texts(16, 4), texts(8, 8))
U, B, H = 24, 8, 3
BATCH = Batch(
    users=np.arange(B, dtype=np.int32),
    items=RNG.permutation(U).astype(np.int32),
    history=RNG.integers(U, size=(B, H)).astype(np.int32),
    history_mask=np.arange(H) < RNG.integers(1, H + 1, B)[:, None],
    target=RNG.integers(U, size=(B, H)).astype(np.int32),
    target_mask=np.ones((B, H), bool),
    tokens=GROUPS,
    candidates=np.ones(U, bool),
)


def parts(method: Peft, dropout: float = 0.0, cached: bool = False, seed: int = 1) -> tuple[Objective, Any, Any]:
    """An objective, its trained tree with noise on it, and its frozen one, with the states that steps don't change."""
    recommends = model(dropout)
    split = partition_params(method, init(recommends, jax.random.key(0)), jax.random.key(1))
    trainable, layer, states = moved(split.trainable, seed), 0, None
    if cached:
        first, reads_all = constant_below(trainable["delta"], CONFIG["num_hidden_layers"])
        layer = None if reads_all else first
        known = np.zeros((U, 8, *(3,) * reads_all, CONFIG["hidden_size"]), np.float32)
        start = 0
        for ids, mask in GROUPS:
            # As a run computes them at its start, when no method changes anything yet.
            weights = {"params": {**split.frozen, **trainable["params"]}}
            states_of = partial(recommends.text_encoder.apply, weights, method="hidden_states")
            known[BATCH.items[start : start + len(ids)], : ids.shape[1]] = states_of(layer, ids, mask)
            start += len(ids)
        states = jnp.asarray(known)
    objective = Objective(recommends, method, LOSSES["full_softmax"], first_trained_layer=layer)
    return objective, trainable, {"params": split.frozen, "text": None, "states": states}


def value_and_grad(objective: Objective, size: int, trainable: Any, frozen: Any, batch: Batch, key: Any = None) -> Any:
    function = jax.jit(lambda trainable, *more: jax.value_and_grad(objective)(trainable, *more, size))
    return function(trainable, frozen, batch, key)


def assert_same(found: Any, wanted: Any) -> None:
    largest = max(np.abs(a).max() for a in jax.tree.leaves(wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest), found, wanted)


@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.long) for name in sorted(METHODS)]
)
def test_every_method_has_the_gradients_of_all_texts_at_once(name):
    objective, trainable, frozen = parts(tiny.method(name))
    whole = value_and_grad(objective, 0, trainable, frozen, BATCH)
    assert_same(value_and_grad(objective, 3, trainable, frozen, BATCH), whole)


@pytest.mark.parametrize("name", ["side", "lora"])
def test_cached_states_are_read_in_micro_batches_too(name):
    options = {"lora": {"target": r"layer_1/.*"}, "side": tiny.METHOD_OPTIONS["side"]}
    method = within(create(name, {name: options[name]}), "encoder")
    objective, trainable, frozen = parts(method)
    whole = value_and_grad(objective, 0, trainable, frozen, BATCH)
    objective, trainable, frozen = parts(method, cached=True)
    assert_same(value_and_grad(objective, 5, trainable, frozen, BATCH), whole)


def test_users_in_parts_as_well():
    objective, trainable, frozen = parts(tiny.method("lora+bitfit"))
    whole = value_and_grad(objective, 0, trainable, frozen, BATCH)
    assert_same(value_and_grad(objective._replace(micro_batches=2), 4, trainable, frozen, BATCH), whole)


def test_dropout_is_replayed():
    """Finite differences along the gradient, with the same key in both passes and in every evaluation."""
    objective, trainable, frozen = parts(tiny.method("lora"), dropout=0.2)
    key = jax.random.key(5)
    value, grads = value_and_grad(objective, 4, trainable, frozen, BATCH, key)
    assert value != value_and_grad(objective, 4, trainable, frozen, BATCH, jax.random.key(6))[0]
    squares = sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(grads))
    step = 2e-3 / squares**0.5
    ends = [jax.tree.map(lambda a, g, s=s: a + s * step * g, trainable, grads) for s in (1, -1)]
    up, down = (float(value_and_grad(objective, 4, end, frozen, BATCH, key)[0]) for end in ends)
    np.testing.assert_allclose((up - down) / (2 * step), squares, rtol=2e-2)


def test_on_eight_devices_and_for_several_runs_at_once():
    objective, trainable, frozen = parts(tiny.method("lora"))
    whole = value_and_grad(objective, 0, trainable, frozen, BATCH)
    mesh = make_mesh()
    shared = {"params": place(frozen["params"], mesh), "text": None, "states": None}
    placed = place_batch(BATCH, mesh)
    assert_same(value_and_grad(objective._replace(mesh=mesh), 8, place(trainable, mesh), shared, placed), whole)
    two = jax.tree.map(lambda *a: jnp.stack(a), trainable, parts(tiny.method("lora"), seed=2)[1])

    @jax.jit
    def together(two):
        return jax.vmap(lambda trainable: jax.value_and_grad(objective)(trainable, frozen, BATCH, None, 3))(two)

    assert_same(jax.tree.map(lambda a: a[0], together(two)), whole)
