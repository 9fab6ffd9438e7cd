"""Losses against closed forms in float64, optax and torch, at extreme scores, and under masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from llm4rec_jax.losses import ranking as losses
from llm4rec_jax.losses.ranking import LOSSES

B, K = 6, 5
SAMPLED = [losses.bpr, losses.hinge, losses.softmax, losses.sampled_bce]
KEEP = np.array(
    [[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool
)


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=B).astype(np.float32), 2 * rng.normal(size=(B, K)).astype(np.float32)


def closed_form(name: str, positive: np.float32, negative: np.ndarray) -> np.float64:
    """The loss of one example with negatives [K], in float64, as its equation reads."""
    p, n = np.float64(positive), negative.astype(np.float64)
    if name == "softmax":
        value = -np.log(np.exp(p) / (np.exp(p) + np.exp(n).sum()))
    elif name == "sampled_bce":
        against = -np.log(1 - 1 / (1 + np.exp(-n)))
        value = -np.log(1 / (1 + np.exp(-p))) + (against.mean() if n.size else 0.0)
    elif not n.size:
        value = 0.0
    elif name == "bpr":
        value = np.mean(-np.log(1 / (1 + np.exp(n - p))))
    else:
        value = np.mean(np.maximum(0, 1 - (p - n)))
    return np.float64(value)


@pytest.mark.parametrize("loss", SAMPLED)
def test_sampled_losses_match_their_equations(loss, scores):
    positive, negative = scores
    full = [closed_form(loss.__name__, p, n) for p, n in zip(positive, negative, strict=True)]
    kept = [closed_form(loss.__name__, p, n[k]) for p, n, k in zip(positive, negative, KEEP, strict=True)]
    value = loss(positive, negative)
    assert value.shape == (B,)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, full, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(loss(positive, negative, where=KEEP), kept, rtol=1e-5, atol=1e-7)


def test_literal_values():
    positive, negative = jnp.array([1.0]), jnp.array([[0.0, 1.0]])
    np.testing.assert_allclose(losses.bpr(positive, negative), [(np.log1p(np.exp(-1)) + np.log(2)) / 2], rtol=1e-6)
    np.testing.assert_allclose(losses.hinge(positive, negative, margin=0.5), [0.25], rtol=1e-6)
    np.testing.assert_allclose(losses.softmax(positive, negative), [np.log(2 + np.exp(-1))], rtol=1e-6)
    np.testing.assert_allclose(
        losses.bce(jnp.array([0.0, 2.0]), jnp.array([1.0, 0.0])), [np.log(2), np.log1p(np.exp(2))], rtol=1e-6
    )
    np.testing.assert_allclose(losses.mse(3.0, 5.0), 4.0)


def test_bce_and_mse_match_optax_and_torch_with_gradients(scores):
    x, _ = scores
    labels = np.random.default_rng(1).uniform(size=B).astype(np.float32)
    np.testing.assert_allclose(losses.bce(x, labels), optax.sigmoid_binary_cross_entropy(x, labels), rtol=1e-5)
    np.testing.assert_allclose(losses.mse(x, labels), optax.squared_error(x, labels), rtol=1e-6)
    tx = torch.tensor(x, requires_grad=True)
    value = torch.nn.functional.binary_cross_entropy_with_logits(tx, torch.tensor(labels), reduction="sum")
    (gradient,) = torch.autograd.grad(value, tx)
    np.testing.assert_allclose(jax.grad(lambda s: losses.bce(s, labels).sum())(x), gradient, rtol=1e-5, atol=1e-7)


def test_hinge_matches_optax_for_scores_of_either_sign(scores):
    x, _ = scores
    np.testing.assert_allclose(losses.hinge(x, np.zeros((B, 1))), optax.hinge_loss(x, np.ones(B)), rtol=1e-6)


def test_sampled_softmax_matches_the_ranking_softmax_of_optax(scores):
    positive, negative = scores
    columns = np.concatenate([positive[:, None], negative], axis=1)
    where = np.concatenate([np.ones((B, 1), bool), KEEP], axis=1)
    labels = np.zeros_like(columns)
    labels[:, 0] = 1
    expected = optax.losses.ranking_softmax_loss(columns, labels, where=where, reduce_fn=None)
    np.testing.assert_allclose(losses.softmax(positive, negative, where=KEEP), expected, rtol=1e-5, atol=1e-6)


def torch_sampled(name: str, p: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    difference = p[:, None] - n
    if name == "bpr":
        return -torch.nn.functional.logsigmoid(difference).mean(1)
    if name == "hinge":
        return torch.nn.functional.margin_ranking_loss(
            p[:, None].expand_as(n), n, torch.ones_like(n), margin=1.0, reduction="none"
        ).mean(1)
    if name == "softmax":
        target = torch.zeros(len(p), dtype=torch.long)
        return torch.nn.functional.cross_entropy(torch.cat([p[:, None], n], 1), target, reduction="none")
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    return entropy(p, torch.ones_like(p), reduction="none") + entropy(n, torch.zeros_like(n), reduction="none").mean(1)


@pytest.mark.parametrize("loss", SAMPLED)
def test_sampled_losses_match_torch_with_gradients(loss, scores):
    p, n = (torch.tensor(x, requires_grad=True) for x in scores)
    expected = torch_sampled(loss.__name__, p, n)
    on_positive, on_negative = torch.autograd.grad(expected.sum(), (p, n))
    np.testing.assert_allclose(loss(*scores), expected.detach(), rtol=1e-5, atol=1e-6)
    gradients = jax.grad(lambda p, n: loss(p, n).sum(), argnums=(0, 1))(*scores)
    np.testing.assert_allclose(gradients[0], on_positive, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradients[1], on_negative, rtol=1e-5, atol=1e-6)


def test_full_softmax_matches_optax_with_gradients(scores):
    _, x = scores
    target = np.arange(B) % K

    def reference(s: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(s, target)

    np.testing.assert_allclose(losses.full_softmax(x, target), reference(jnp.asarray(x)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        jax.grad(lambda s: losses.full_softmax(s, target).sum())(x),
        jax.grad(lambda s: reference(s).sum())(jnp.asarray(x)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_full_softmax_keeps_a_masked_target(scores):
    _, x = scores
    target = np.arange(B) % K
    kept = KEEP | (np.arange(K) == target[:, None])
    expected = [
        -np.log(np.exp(np.float64(s[t])) / np.exp(s[k].astype(np.float64)).sum())
        for s, t, k in zip(x, target, kept, strict=True)
    ]
    np.testing.assert_allclose(losses.full_softmax(x, target, where=KEEP), expected, rtol=1e-5, atol=1e-6)


def test_in_batch_softmax_corrects_every_score_and_drops_accidental_negatives():
    scores = np.log(np.array([[2.0, 3.0, 4.0], [1.0, 5.0, 6.0]], np.float32))
    log_q = np.log(np.array([0.5, 0.25, 0.25], np.float32))
    # Corrected weights e^s / q: row 0 is (4, 12, 16), row 1 is (2, 20, 24).
    value = losses.in_batch_softmax(scores, np.array([0, 1]), log_q)
    np.testing.assert_allclose(value, -np.log([4 / 32, 20 / 46]), rtol=1e-5)
    where = np.array([[True, False, True], [True, False, True]])
    value = losses.in_batch_softmax(scores, np.array([0, 1]), log_q, where=where)
    np.testing.assert_allclose(value, -np.log([4 / 20, 20 / 46]), rtol=1e-5)


@pytest.mark.parametrize("loss", SAMPLED)
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_scores_give_finite_values_and_gradients(loss, size):
    positive = jnp.array([size, -size, size, 0.0])
    negative = jnp.array([[-size, 0.0], [size, 0.0], [size, size], [size, -size]])
    assert np.isfinite(loss(positive, negative)).all()
    gradients = jax.grad(lambda p, n: loss(p, n).sum(), argnums=(0, 1))(positive, negative)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_softmax_is_shift_invariant_and_precise_at_extreme_scores():
    shifted = losses.softmax(jnp.array([1e4 + 0.5]), jnp.array([[1e4, 1e4 - 0.5]]))
    np.testing.assert_allclose(shifted, losses.softmax(jnp.array([0.5]), jnp.array([[0.0, -0.5]])), rtol=1e-6)
    np.testing.assert_allclose(losses.softmax(jnp.array([30.0]), jnp.array([[0.0]])), [np.exp(-30.0)], rtol=1e-5)
    np.testing.assert_allclose(losses.softmax(jnp.array([-1e4]), jnp.array([[1e4]])), [2e4], rtol=1e-6)
    extreme = jnp.array([30.0, -1e4, 1e4])
    np.testing.assert_allclose(losses.bce(extreme, 1.0), [np.exp(-30.0), 1e4, 0.0], rtol=1e-5)


@pytest.mark.parametrize("garbage", [1e38, -1e38, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("loss", SAMPLED)
def test_masked_entries_change_nothing_and_get_no_gradient(loss, garbage, scores):
    positive, negative = scores
    dirty = np.where(KEEP, negative, np.float32(garbage))

    def total(p: jax.Array, n: jax.Array) -> jax.Array:
        return loss(p, n, where=KEEP).sum()

    np.testing.assert_array_equal(loss(positive, dirty, where=KEEP), loss(positive, negative, where=KEEP))
    on_positive, on_negative = jax.grad(total, argnums=(0, 1))(positive, dirty)
    expected = jax.grad(total, argnums=(0, 1))(positive, negative)
    np.testing.assert_array_equal(on_positive, expected[0])
    np.testing.assert_array_equal(on_negative, expected[1])
    assert (np.asarray(on_negative)[~KEEP] == 0).all()


@pytest.mark.parametrize("garbage", [1e38, np.inf, np.nan])
def test_masked_candidates_of_the_catalogue_get_no_gradient(garbage, scores):
    _, x = scores
    target = np.arange(B) % K
    kept = KEEP | (np.arange(K) == target[:, None])
    dirty = np.where(kept, x, np.float32(garbage))
    value, gradient = jax.value_and_grad(lambda s: losses.full_softmax(s, target, where=KEEP).sum())(dirty)
    np.testing.assert_allclose(value, losses.full_softmax(x, target, where=KEEP).sum())
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[~kept] == 0).all()


@pytest.mark.parametrize("loss", [losses.bpr, losses.hinge, losses.softmax])
@pytest.mark.parametrize("count", [0, 3])
def test_an_example_without_negatives_costs_nothing(loss, count):
    positive, negative = jnp.array([3.0]), jnp.ones((1, count))
    value, gradients = jax.value_and_grad(
        lambda p, n: loss(p, n, where=jnp.zeros((1, count), bool)).sum(), argnums=(0, 1)
    )(positive, negative)
    assert value == 0
    assert all((np.asarray(gradient) == 0).all() for gradient in gradients)


def test_reduce_mean_skips_masked_values_and_gives_zero_for_an_empty_mask():
    values, mask = jnp.array([1.0, np.nan, 3.0]), jnp.array([True, False, True])
    assert losses.reduce_mean(values, mask) == 2
    np.testing.assert_array_equal(jax.grad(losses.reduce_mean)(values, mask), [0.5, 0, 0.5])
    assert losses.reduce_mean(values, jnp.zeros(3, bool)) == 0
    np.testing.assert_array_equal(jax.grad(losses.reduce_mean)(values, jnp.zeros(3, bool)), np.zeros(3))


def test_half_precision_scores_are_promoted(scores):
    positive, negative = (jnp.asarray(x, jnp.bfloat16) for x in scores)
    for loss in SAMPLED:
        value = loss(positive, negative)
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, loss(positive.astype(jnp.float32), negative.astype(jnp.float32)))


def arguments(negatives: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    if negatives == "none":
        return {"scores": rng.normal(size=B), "target": np.arange(B) % 2}
    width = 1 + K if negatives == "sampled" else K
    return {
        "scores": rng.normal(size=(B, width)),
        "target": np.arange(B) % K,
        "log_q": np.log(np.full(K, 1 / K)),
        "where": KEEP,
    }


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_is_called_alike_under_jit_and_vmap(name):
    loss = LOSSES.lookup(name).bind(num_items=40)
    given = arguments(loss.negatives)
    value = loss(**given)
    assert value.shape == (B,)
    np.testing.assert_allclose(jax.jit(lambda given: loss(**given))(given), value, rtol=1e-6)
    axes = {key: None if key == "log_q" else 0 for key in given}
    np.testing.assert_allclose(jax.vmap(lambda given: loss(**given), in_axes=(axes,))(given), value, rtol=1e-6)


def test_the_positive_of_a_sampled_loss_is_column_zero(scores):
    positive, negative = scores
    columns = np.concatenate([positive[:, None], negative], axis=1)
    np.testing.assert_array_equal(LOSSES.lookup("bpr")(columns, where=KEEP), losses.bpr(positive, negative, where=KEEP))


def test_wrong_calls_say_what_is_missing():
    with pytest.raises(ValueError, match="needs a target"):
        LOSSES.lookup("mse")(jnp.zeros(2))
    for name in ("in_batch", "softmax_log_q"):
        with pytest.raises(ValueError, match="log_q"):
            LOSSES.lookup(name)(jnp.zeros((2, 3)), jnp.zeros(2, int))
    with pytest.raises(ValueError, match="hinge"):
        LOSSES.lookup("hinges")


def test_the_former_name_of_the_full_softmax_still_works():
    with pytest.warns(FutureWarning, match="'catalogue' is now called 'full_softmax'"):
        assert LOSSES.lookup("catalogue") is LOSSES["full_softmax"]
