"""The objective against one example at a time in NumPy, with items that are ids only."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.data.batching.batch import NOWHERE, Batch
from llm4rec_jax.losses.ranking import LOSSES
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.peft import create
from llm4rec_jax.tasks.ranking_objective import Objective

ITEMS, B, H, K, THRESHOLD = 12, 5, 4, 3, 2.5
MODES = {name: loss.negatives for name, loss in LOSSES.items()}
MODEL = recommender(num_items=ITEMS, users="mean", width=6)
METHOD = create("frozen")
TABLE = np.random.default_rng(0).normal(size=(ITEMS, 6))
FROZEN: dict[str, Any] = {"params": {}, "text": None, "states": None}


def trainable() -> dict[str, Any]:
    return {"delta": {}, "params": {"ids": {"embedding": jnp.asarray(TABLE, jnp.float32)}}}


def make(mode: str, width: int = H, seed: int = 1) -> Batch:
    """A batch with padding, masked targets, and item rows in an order of their own; T is H, or 1 with width 1."""
    rng = np.random.default_rng(seed)
    # Item 11 takes no part; item 3 pads.
    rows = np.r_[rng.permutation(11), [3, 3, 3]].astype(np.int32)
    lengths = np.array([4, 1, 3, 2, 4])
    history_mask = np.arange(H) < lengths[:, None]
    target_mask = (history_mask if width == H else np.ones((B, 1), bool)) & (rng.random((B, width)) < 0.7)
    target_mask[0, 0] = True
    batch = Batch(
        users=np.arange(B),
        items=rows,
        history=rng.integers(8, size=(B, H)),
        history_mask=history_mask,
        target=rng.integers(8, size=(B, width)),
        target_mask=target_mask,
    )
    log_q = np.log(rng.random(len(rows))).astype(np.float32)
    if mode == "sampled":
        return batch._replace(negatives=rng.integers(11, size=(B, width, K)), log_q=log_q)
    if mode == "none":
        return batch._replace(rating=rng.integers(1, 6, (B, width)).astype(np.float32))
    candidates = np.zeros(len(rows), bool)
    if mode == "catalogue":
        candidates[:11] = True
        return batch._replace(candidates=candidates)
    candidates[batch.target[target_mask]] = True
    own = np.sort(np.pad(rng.integers(11, size=(B, 4)), ((0, 0), (2, 0)), constant_values=-1), axis=1)
    return batch._replace(candidates=candidates, user_items=own, log_q=log_q)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def one(name: str, positive: float, negative: np.ndarray, wanted: float) -> float:
    """The loss of one target. `negative` are the scores that it is compared with, its own left out."""
    match name:
        case "bpr":
            return float(-np.log(sigmoid(positive - negative)).mean())
        case "bce":
            return float(-np.log(sigmoid(positive)) - np.log(1 - sigmoid(negative)).mean())
        case "hinge":
            return float(np.maximum(0, 1 - positive + negative).mean())
        case "gbce":
            power = 1 - 0.75 * (1 - K / (ITEMS - 1))
            return float(-(power * np.log(sigmoid(positive)) + np.log(1 - sigmoid(negative)).sum()) / (K + 1))
        case "dns":
            return float(-np.log(sigmoid(positive - negative.max())))
        case "softmax_log_q":
            return float(np.log(np.exp(positive) + np.exp(negative).mean()) - positive)
        case "softmax" | "in_batch" | "mixed_negatives" | "info_nce" | "full_softmax":
            return float(np.log(np.exp(positive) + np.exp(negative).sum()) - positive)
        case "bce_pointwise":
            probability = sigmoid(positive)
            return float(-np.log(probability if wanted >= THRESHOLD else 1 - probability))
        case "mse":
            return float((positive - wanted) ** 2)
    raise AssertionError(name)


def naive(name: str, batch: Batch) -> float:
    """Loops over targets, with the mean of the history as profile."""
    vectors = TABLE[np.asarray(batch.items)]
    losses = []
    for b, t in np.argwhere(batch.target_mask):
        length = int(np.sum(batch.history_mask[b]))
        # With one target an example, the whole history is read.
        read = batch.history[b][: length if batch.target.shape[1] == 1 else t + 1]
        profile, target = vectors[read].mean(0), batch.target[b, t]
        scores = vectors @ profile
        if name in ("in_batch", "mixed_negatives"):
            scores = scores - batch.log_q
        against = np.zeros(0)
        if batch.negatives is not None:
            against = scores[batch.negatives[b, t]]
            if name == "softmax_log_q":
                against = against - batch.log_q[batch.negatives[b, t]]
        elif batch.candidates is not None:
            own = [] if batch.user_items is None else batch.user_items[b]
            rivals = [u for u in np.flatnonzero(batch.candidates) if u != target and batch.items[u] not in own]
            against = scores[rivals]
        losses.append(one(name, scores[target], against, 0.0 if batch.rating is None else batch.rating[b, t]))
    return float(np.mean(losses))


def objective(name: str) -> Objective:
    loss = LOSSES.lookup(name).bind(num_items=ITEMS)
    return Objective(MODEL, METHOD, loss, THRESHOLD if name == "bce_pointwise" else None)


@partial(jax.jit, static_argnums=0)
def value_and_grad(name: str, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The loss, and its gradient with respect to the table of item vectors."""
    value, grads = jax.value_and_grad(objective(name))(trainable(), FROZEN, batch, None)
    (table,) = jax.tree.leaves(grads)
    return value, table


@pytest.mark.parametrize("width", [H, 1])
@pytest.mark.parametrize("name", sorted(MODES))
def test_it_is_the_mean_over_targets_one_at_a_time(name, width):
    batch = make(MODES[name], width)
    assert 1 < batch.target_mask.sum() < batch.target_mask.size
    value, _ = value_and_grad(name, batch)
    np.testing.assert_allclose(value, naive(name, batch), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(MODES))
def test_what_is_masked_has_no_influence(name):
    batch = make(MODES[name])
    rng = np.random.default_rng(9)
    mask = batch.target_mask
    history = np.where(batch.history_mask, batch.history, rng.integers(11, size=(B, H)))
    changed = batch._replace(history=history, target=np.where(mask, batch.target, rng.integers(11, size=(B, H))))
    if batch.negatives is not None:
        changed = changed._replace(
            negatives=np.where(mask[..., None], batch.negatives, rng.integers(11, size=(B, H, K)))
        )
    if batch.rating is not None:
        changed = changed._replace(rating=np.where(mask, batch.rating, 99.0).astype(np.float32))
    # Padding repeats an item; which one does not matter.
    changed = changed._replace(items=np.r_[batch.items[:11], [5, 11, 7]].astype(np.int32))
    assert not all(np.array_equal(a, b) for a, b in zip(batch, changed, strict=True) if a is not None)
    (value, grad), (other, other_grad) = (value_and_grad(name, b) for b in (batch, changed))
    np.testing.assert_array_equal(value, other)
    np.testing.assert_allclose(grad, other_grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, mode in MODES.items() if mode in ("in_batch", "catalogue")])
def test_losses_only_where_targets_are_real_are_the_same(name):
    batch = make(MODES[name])
    places = np.flatnonzero(batch.target_mask)
    real = np.full(16, NOWHERE, np.int32)
    real[: len(places)] = places
    objective = Objective(MODEL, METHOD, LOSSES[name], THRESHOLD)

    def run(batch):
        return jax.value_and_grad(objective)(trainable(), FROZEN, batch, None)

    (whole, grads), (compact, compact_grads) = run(batch), run(batch._replace(target_positions=real))
    assert float(compact) == pytest.approx(float(whole), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), compact_grads, grads)
    losses = objective.losses(trainable(), FROZEN, batch._replace(target_positions=real), None)
    assert not np.asarray(losses)[~batch.target_mask].any()


def test_in_batch_negatives_are_never_the_users_own():
    """A user who owns all candidates has nothing to be compared with; one who owns none has all of them."""
    batch = make("in_batch")
    everything = batch._replace(user_items=np.tile(np.arange(11), (B, 1)))
    losses = objective("in_batch").losses(trainable(), FROZEN, everything, None)
    np.testing.assert_allclose(losses, 0, atol=1e-6)
    nothing = batch._replace(user_items=np.full((B, 4), -1))
    assert (objective("in_batch").losses(trainable(), FROZEN, nothing, None)[batch.target_mask] > 0.01).all()
    np.testing.assert_allclose(value_and_grad("in_batch", nothing)[0], naive("in_batch", nothing), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(MODES))
def test_items_that_take_no_part_have_no_gradient(name):
    batch = make(MODES[name])
    table = np.asarray(value_and_grad(name, batch)[1])
    last = batch.history_mask & (np.cumsum(batch.target_mask[:, ::-1], axis=1)[:, ::-1] > 0)
    used = [batch.history[last], batch.target[batch.target_mask]]
    if batch.negatives is not None:
        used.append(batch.negatives[batch.target_mask].ravel())
    if batch.candidates is not None:
        used.append(np.flatnonzero(batch.candidates))
    part = np.isin(np.arange(ITEMS), batch.items[np.concatenate(used)])
    assert not part[11]
    assert not table[~part].any()
    # Beyond the margin, and for negatives that are not the hardest, there is no gradient.
    if name not in ("hinge", "dns"):
        assert (table[part] != 0).any(axis=1).all()


def test_the_penalty_is_added_and_an_empty_batch_costs_nothing_else():
    batch = make("catalogue")
    method = METHOD._replace(penalty=lambda delta: jnp.float32(2.5))
    plain, more = (
        Objective(MODEL, m, LOSSES.lookup("full_softmax"))(trainable(), FROZEN, batch, None) for m in (METHOD, method)
    )
    np.testing.assert_allclose(more - plain, 2.5, rtol=1e-6)
    empty = batch._replace(target_mask=np.zeros((B, H), bool))
    assert objective("full_softmax")(trainable(), FROZEN, empty, None) == 0


@pytest.mark.parametrize("name", sorted(MODES))
def test_users_in_parts_have_the_losses_and_gradients_of_all_at_once(name):
    batch = make(MODES[name])
    rows = np.r_[:B, 0]  # six examples
    batch = batch._replace(
        **{f: v[rows] for f, v in batch._asdict().items() if isinstance(v, np.ndarray) and len(v) == B}
    )
    whole = objective(name)

    def run(parts: int):
        some = whole._replace(micro_batches=parts)
        value, grads = jax.value_and_grad(some)(trainable(), FROZEN, batch, None)
        return value, grads, some.losses(trainable(), FROZEN, batch, None)

    for parts in (2, 3):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), run(parts), run(1))


def test_each_part_has_a_dropout_of_its_own():
    model = recommender(num_items=ITEMS, users="transformer", width=6, options={"users": {"dropout": 0.5, "layers": 1}})
    tree, batch = {"delta": {}, "params": init(model, jax.random.key(0))}, make("catalogue")
    # Every example twice, and each of the two in another part.
    twice = batch._replace(
        **{f: np.repeat(v, 2, axis=0) for f, v in batch._asdict().items() if isinstance(v, np.ndarray) and len(v) == B}
    )
    parts = Objective(model, METHOD, LOSSES["full_softmax"], micro_batches=2)
    losses = np.asarray(parts.losses(tree, FROZEN, twice, jax.random.key(3)))
    assert not np.allclose(losses[::2], losses[1::2])
    still = np.asarray(parts.losses(tree, FROZEN, twice, None))
    np.testing.assert_array_equal(still[::2], still[1::2])


def test_only_a_key_turns_dropout_on():
    model = recommender(num_items=ITEMS, users="transformer", width=6, options={"users": {"dropout": 0.5, "layers": 1}})
    whole = jax.jit(Objective(model, METHOD, LOSSES.lookup("full_softmax")).__call__)
    tree, batch = {"delta": {}, "params": init(model, jax.random.key(0))}, make("catalogue")
    keys = [None, None, *jax.random.split(jax.random.key(1))]
    off, again, first, second = (float(whole(tree, FROZEN, batch, key)) for key in keys)
    assert off == again
    assert len({off, first, second}) == 3
    assert first == float(whole(tree, FROZEN, batch, keys[2]))
