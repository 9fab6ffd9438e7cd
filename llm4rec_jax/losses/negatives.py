"""Losses that correct for how their negatives are drawn, or that choose among them."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from llm4rec_jax.losses.ranking import LOSSES, Loss, corrected, full_softmax, in_batch_softmax, softmax


def gbce(
    positive: ArrayLike,
    negative: ArrayLike,
    where: ArrayLike | None = None,
    *,
    num_items: int,
    calibration: float = 0.75,
) -> jax.Array:
    """Generalised binary cross entropy (Petrov and Macdonald 2023, gSASRec, arXiv 2308.07192, Eqs. 15 and 21).

    -(β log σ(p) + Σ log(1 - σ(n))) / (K + 1), with β = a (t (1 - 1/a) + 1/a) and the sampled share a = K / (I - 1) of
    the items. Sampled negatives make probabilities too high; t says how much of that is taken back: 0 is the binary
    cross entropy, and at 1 the probabilities are those that all negatives would give.

    positive [...], negative [..., K] drawn uniformly, where [..., K] -> [...]; num_items is I, calibration t in [0, 1].
    """
    positive, negative = jnp.asarray(positive, jnp.float32), jnp.asarray(negative, jnp.float32)
    share = negative.shape[-1] / (num_items - 1)
    power = share * calibration - calibration + 1
    where = jnp.broadcast_to(True if where is None else jnp.asarray(where, bool), negative.shape)
    against = jnp.where(where, jax.nn.softplus(jnp.where(where, negative, 0.0)), 0.0).sum(-1)
    return (power * jax.nn.softplus(-positive) + against) / (1 + where.sum(-1))


def softmax_log_q(
    positive: ArrayLike, negative: ArrayLike, log_q: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
    """Sampled softmax whose sum estimates the one over all items (Bengio and Senécal 2008, importance sampling).

    -log(e^p / (e^p + (1/K) Σ e^n / q(n))). The target is always there and not drawn, so its score is not corrected
    (Khrylchenko et al. 2025, arXiv 2507.09331).

    positive [...], negative [..., K], log_q [..., K] the log probability of drawing each negative, where [..., K] ->
    [...].
    """
    negative = jnp.asarray(negative, jnp.float32)
    kept = jnp.broadcast_to(True if where is None else jnp.asarray(where, bool), negative.shape)
    drawn = jnp.log(jnp.maximum(kept.sum(-1, keepdims=True), 1))
    return softmax(positive, negative - jnp.asarray(log_q, jnp.float32) - drawn, kept)


def dns(positive: ArrayLike, negative: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """BPR against the hardest of the drawn negatives, -log σ(p - max n) (Zhang et al. 2013, dynamic negative sampling).

    positive [...], negative [..., K], where [..., K] -> [...].
    """
    positive, negative = jnp.asarray(positive, jnp.float32), jnp.asarray(negative, jnp.float32)
    kept = jnp.broadcast_to(True if where is None else jnp.asarray(where, bool), negative.shape)
    found = kept.any(-1)
    # One negative takes the gradient, also where several have the same score.
    column = jnp.where(kept, negative, -jnp.inf).argmax(-1) if negative.shape[-1] else jnp.zeros(found.shape, int)
    padded = jnp.concatenate([negative, positive[..., None]], axis=-1)
    hardest = jnp.take_along_axis(padded, column[..., None], axis=-1)[..., 0]
    return jnp.where(found, jax.nn.softplus(jnp.where(found, hardest, positive) - positive), 0.0)


def info_nce(
    scores: ArrayLike, target: ArrayLike, where: ArrayLike | None = None, *, temperature: float = 1.0
) -> jax.Array:
    """InfoNCE over the items of a batch, -log(e^(p/τ) / Σ e^(s/τ)) (van den Oord et al. 2018, arXiv 1807.03748).

    Unlike `in_batch` it does not correct for popular items being drawn more often. The head "cosine" divides by a
    temperature of its own, besides τ.

    scores [..., N], target int [...], where [..., N] -> [...].
    """
    return full_softmax(jnp.asarray(scores, jnp.float32) / temperature, target, where)


def _tempered(scores: jax.Array, log_q: jax.Array | None, *, temperature: float = 1.0) -> jax.Array:
    return scores / temperature


LOSSES.register("gbce")(Loss(gbce, "sampled"))
LOSSES.register("softmax_log_q")(Loss(softmax_log_q, "sampled", corrected))
LOSSES.register("dns")(Loss(dns, "sampled"))
LOSSES.register("info_nce")(Loss(info_nce, "in_batch", _tempered))
# Mixed negative sampling (Yang et al. 2020): items of the batch and uniform ones, corrected by the probability of both.
LOSSES.register("mixed_negatives")(Loss(in_batch_softmax, "mixed", corrected))
