"""Losses that correct or choose negatives, against their equations in float64 and gradients by torch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm4rec_jax.losses import LOSSES, negatives, ranking
from llm4rec_jax.tasks.ranking import LossConfig, chosen_loss

B, K, ITEMS, T = 6, 5, 40, 0.6
RNG = np.random.default_rng(0)
POSITIVE, NEGATIVE = RNG.normal(size=B).astype(np.float32), 2 * RNG.normal(size=(B, K)).astype(np.float32)
LOG_Q = np.log(RNG.dirichlet(np.ones(ITEMS))[:K]).astype(np.float32)
KEEP = np.array(
    [[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool
)
SAMPLED = {
    "gbce": partial(negatives.gbce, num_items=ITEMS, calibration=T),
    "softmax_log_q": partial(negatives.softmax_log_q, log_q=LOG_Q),
    "dns": negatives.dns,
}


def by_torch(name: str, p: torch.Tensor, n: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """The loss of one example with negatives [K], as its equation reads."""
    if name == "gbce":
        share = K / (ITEMS - 1)
        power = share * (T * (1 - 1 / share) + 1 / share)
        return -(torch.sigmoid(p).pow(power).log() + (1 - torch.sigmoid(n)).log().sum()) / (len(n) + 1)
    if name == "softmax_log_q":
        return -(p.exp() / (p.exp() + (n.exp() / log_q.exp()).sum() / max(len(n), 1))).log()
    return -torch.sigmoid(p - n.max()).log() if len(n) else 0 * p


@pytest.mark.parametrize("where", [None, KEEP])
@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_losses_and_gradients_match_their_equations(name, where):
    loss, kept = SAMPLED[name], np.ones_like(KEEP) if where is None else where
    p, n = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (POSITIVE, NEGATIVE))
    log_q = torch.tensor(LOG_Q, dtype=torch.float64)
    expected = torch.stack([by_torch(name, p[i], n[i][kept[i]], log_q[kept[i]]) for i in range(B)])
    gradients = torch.autograd.grad(expected.sum(), (p, n))
    dirty = np.where(kept, NEGATIVE, np.nan).astype(np.float32)
    value = loss(POSITIVE, dirty, where=where)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-5, atol=1e-6)
    ours = jax.grad(lambda p, n: loss(p, n, where=where).sum(), argnums=(0, 1))(POSITIVE, dirty)
    for mine, theirs in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_uncalibrated_gbce_is_bce_and_a_calibrated_one_weighs_the_target_by_the_share():
    half = partial(negatives.gbce, POSITIVE, NEGATIVE[:, :1], num_items=3)
    np.testing.assert_allclose(half(calibration=0.0), ranking.sampled_bce(POSITIVE, NEGATIVE[:, :1]) / 2, rtol=1e-5)
    # One of two others is drawn, so that the target counts half.
    whole = jax.nn.softplus(-POSITIVE) / 2 + jax.nn.softplus(NEGATIVE[:, 0])
    np.testing.assert_allclose(half(calibration=1.0), whole / 2, rtol=1e-5)


def test_the_corrected_sum_is_that_over_all_items_on_average():
    """The mean of e^n / q over draws in proportion to q is Σ e^n over all items; without the correction it is not."""
    rng = np.random.default_rng(1)
    scores, q = rng.normal(size=ITEMS), rng.dirichlet(np.full(ITEMS, 0.5)) * 0.9 + 0.1 / ITEMS
    drawn = rng.choice(ITEMS, 200_000, p=q)
    exact = np.log1p(np.exp(scores).sum())
    log_q = np.log(q)[drawn]
    np.testing.assert_allclose(negatives.softmax_log_q(0.0, scores[drawn], log_q), exact, atol=0.01)
    uniform = negatives.softmax_log_q(0.0, scores[drawn], np.full(len(drawn), -np.log(ITEMS)))
    assert abs(float(uniform) - exact) > 0.05


def test_info_nce_is_a_softmax_of_divided_scores():
    target = np.arange(B) % K
    value = negatives.info_nce(NEGATIVE, target, temperature=0.1)
    logits = torch.tensor(NEGATIVE, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(logits / 0.1, torch.tensor(target), reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-5, atol=1e-5)
    ours = jax.grad(lambda s: negatives.info_nce(s, target, temperature=0.1).sum())(NEGATIVE)
    np.testing.assert_allclose(ours, gradient, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(negatives.info_nce(NEGATIVE, target), ranking.full_softmax(NEGATIVE, target))


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_scores_give_finite_values_and_gradients(name, size):
    positive = jnp.array([size, -size, size, 0.0])
    negative = jnp.array([[-size, 0.0], [size, 0.0], [size, size], [size, -size]])
    loss = {**SAMPLED, "softmax_log_q": partial(negatives.softmax_log_q, log_q=LOG_Q[:2])}[name]
    value, gradients = jax.value_and_grad(lambda p, n: loss(p, n).sum(), argnums=(0, 1))(positive, negative)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_options_reach_the_loss_that_takes_them():
    loss = chosen_loss(LossConfig("gbce", calibration=T), ITEMS)
    columns = np.concatenate([POSITIVE[:, None], NEGATIVE], axis=1)
    np.testing.assert_array_equal(loss(columns), SAMPLED["gbce"](POSITIVE, NEGATIVE))
    assert chosen_loss(LossConfig("bpr"), ITEMS) == LOSSES["bpr"]
    with pytest.raises(ValueError, match=r"config.loss.temperature is an option of info_nce, but the loss is 'bpr'"):
        chosen_loss(LossConfig("bpr", temperature=0.1), ITEMS)
    with pytest.raises(ValueError, match=r"config.loss.calibration is 1.5, must be at most 1.0"):
        LossConfig("gbce", calibration=1.5)
