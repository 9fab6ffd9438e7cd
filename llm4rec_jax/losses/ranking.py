"""Training losses: one float32 value an example, which the caller reduces.

Scores are promoted to float32, and every loss works on differences of scores, so values and gradients stay finite and
precise for scores of 1e4 and more. `where` is True for the candidates which count; the others get a gradient of zero
whatever they hold. An example left without a negative costs nothing.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from llm4rec_jax.data.batching.negatives import Negatives
from llm4rec_jax.registry import Registry


def bpr(positive: ArrayLike, negative: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """-log σ(p - n), mean over the negatives (Rendle et al. 2009, Eq. 4, without the regulariser).

    positive [...], negative [..., K], where [..., K] -> [...].
    """
    difference, where = _differences(positive, negative, where)
    return reduce_mean(jax.nn.softplus(difference), where, axis=-1)


def hinge(positive: ArrayLike, negative: ArrayLike, margin: float = 1.0, where: ArrayLike | None = None) -> jax.Array:
    """max(0, margin - (p - n)), mean over the negatives; the subgradient at the kink is 0.

    positive [...], negative [..., K], where [..., K] -> [...].
    """
    difference, where = _differences(positive, negative, where)
    return reduce_mean(jax.nn.relu(margin + difference), where, axis=-1)


def softmax(positive: ArrayLike, negative: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """Sampled softmax, -log(e^p / (e^p + Σ e^n)).

    positive [...], negative [..., K], where [..., K] -> [...].
    """
    difference, where = _differences(positive, negative, where)
    return _log_one_plus_sum_exp(difference, where)


def sampled_bce(positive: ArrayLike, negative: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """-log σ(p) - log(1 - σ(n)), the second term a mean over the negatives (Kang and McAuley 2018, Eq. 7, at K = 1).

    positive [...], negative [..., K], where [..., K] -> [...]. Without a negative the first term remains.
    """
    negative = _float32(negative)
    where = _mask(where, negative)
    against = reduce_mean(jax.nn.softplus(jnp.where(where, negative, 0.0)), where, axis=-1)
    return jax.nn.softplus(-_float32(positive)) + against


def bce(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Sigmoid cross entropy of each score. scores [...], labels [...] in [0, 1] -> [...]."""
    scores, labels = _float32(scores), _float32(labels)
    return labels * jax.nn.softplus(-scores) + (1.0 - labels) * jax.nn.softplus(scores)


def mse(scores: ArrayLike, ratings: ArrayLike) -> jax.Array:
    """Squared error of each score, in squared rating units. scores [...], ratings [...] -> [...]."""
    return jnp.square(_float32(scores) - _float32(ratings))


def full_softmax(scores: ArrayLike, target: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """Cross entropy of the target among all candidates, which always include the target.

    scores [..., N], target int [...], where [..., N] -> [...]. A target outside [0, N) gives NaN or, if negative,
    counts from the end: under jit it cannot raise.
    """
    scores, target = _float32(scores), jnp.asarray(target)
    if where is not None:
        kept = _mask(where, scores) | (jnp.arange(scores.shape[-1]) == target[..., None])
        scores = jnp.where(kept, scores, -jnp.inf)
    return _cross_entropy(scores, target)


@jax.custom_vjp
def _cross_entropy(scores: jax.Array, target: jax.Array) -> jax.Array:
    """log Σ e^s - s_target. scores [..., N], target [...] -> [...].

    Its gradient is written out, softmax less one at the target: [..., N] is read once for it, and nothing of that size
    is kept but the scores.
    """
    return _cross_entropy_forward(scores, target)[0]


def _cross_entropy_forward(scores: jax.Array, target: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    positive = jnp.take_along_axis(scores, target[..., None], axis=-1)[..., 0]
    # The highest score is taken out of both terms: their difference stays precise however large the scores are.
    highest = scores.max(axis=-1)
    total = jnp.exp(scores - highest[..., None]).sum(axis=-1)
    return jnp.log(total) + (highest - positive), (scores, target, highest, total)


def _cross_entropy_backward(saved: tuple[jax.Array, ...], grad: jax.Array) -> tuple[jax.Array, None]:
    scores, target, highest, total = saved
    share = jnp.exp(scores - highest[..., None]) * (grad / total)[..., None]
    own = jnp.arange(scores.shape[-1]) == target[..., None]
    return jnp.where(own, share - grad[..., None], share), None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def in_batch_softmax(
    scores: ArrayLike, target: ArrayLike, log_q: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
    """Softmax over the items of a batch, each score less the log of its sampling probability (Yi et al. 2019, Eq. 5).

    scores [..., N], target int [...], log_q [N], finite where it counts, where [..., N] -> [...]. `where` drops
    accidental negatives, the other items of the same user; the target is kept in any case.
    """
    return full_softmax(_float32(scores) - _float32(log_q), target, where)


def reduce_mean(values: ArrayLike, mask: ArrayLike, axis: int | None = None) -> jax.Array:
    """Mean of the values under the mask; 0, with a gradient of 0, where the mask is empty.

    values [...], mask bool [...] -> scalar, or without `axis` when that is given.
    """
    mask = jnp.asarray(mask, bool)
    total = jnp.sum(jnp.where(mask, _float32(values), 0.0), axis=axis)
    return total / jnp.maximum(jnp.sum(mask, axis=axis), 1)


class Loss(NamedTuple):
    """A loss and the candidates it scores an example against, which fix the arguments of `function`.

    - "sampled": function(positive [...], negative [..., K], where=[..., K])
    - "in_batch" and "mixed": function(scores [..., N], target [...], where=[..., N])
    - "catalogue": function(scores [..., N], target [...], where=[..., N])
    - "none": function(scores [...], target [...]), the target a label or a rating

    Negatives may have a `log_q`, the log probability by which they are drawn: a function that corrects for it takes
    log_q=[..., K] where they are sampled, and log_q=[N] where they are items of the batch.

    Attributes:
      function: The loss.
      negatives: Kind of its candidates.
      logits: For a loss that is the cross entropy of the target among its candidates: (scores, log_q) to what the
        softmax is over, elementwise, with the options of the function. The loss can then be computed in blocks of
        candidates; see `losses.blocks`. Where negatives are sampled, log_q + log K is given for them, and 0 for the
        target.
    """

    function: Callable[..., jax.Array]
    negatives: Negatives
    logits: Callable[..., jax.Array] | None = None

    def takes(self, option: str) -> bool:
        """Returns whether the function has an argument of this name."""
        return option in inspect.signature(self.function).parameters

    def bind(self, **options: Any) -> "Loss":
        """Returns the loss with those of the options that its function takes."""

        def bound(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
            taken = inspect.signature(function).parameters.keys() & options.keys()
            return functools.partial(function, **{name: options[name] for name in taken}) if taken else function

        return self._replace(function=bound(self.function), logits=None if self.logits is None else bound(self.logits))

    def __call__(
        self,
        scores: ArrayLike,
        target: ArrayLike | None = None,
        log_q: ArrayLike | None = None,
        where: ArrayLike | None = None,
    ) -> jax.Array:
        """Loss of each example, called alike for every kind; a kind ignores what it has no use for.

        "sampled" takes scores [..., 1 + K] with the positive in column 0, and `where` and `log_q` [..., K] over the
        negatives; the other kinds take the arguments of `function`. Raises ValueError for a missing target or log_q.
        """
        corrects = {"log_q": log_q} if self.takes("log_q") else {}
        if corrects and log_q is None:
            raise ValueError("this loss needs log_q, the log sampling probability of each candidate")
        if self.negatives == "sampled":
            scores = jnp.asarray(scores)
            return self.function(scores[..., 0], scores[..., 1:], where=where, **corrects)
        if target is None:
            raise ValueError(f'a loss with negatives "{self.negatives}" needs a target')
        if self.negatives == "none":
            return self.function(scores, target)
        return self.function(scores, target, where=where, **corrects)


def corrected(scores: jax.Array, log_q: jax.Array) -> jax.Array:
    """Returns logits that are scores less the log of the probability by which candidates are drawn."""
    return scores - log_q


def _scores(scores: jax.Array, log_q: jax.Array | None) -> jax.Array:
    return scores


LOSSES: Registry[Loss] = Registry("loss")
LOSSES.register("bpr")(Loss(bpr, "sampled"))
LOSSES.register("bce")(Loss(sampled_bce, "sampled"))
LOSSES.register("hinge")(Loss(hinge, "sampled"))
LOSSES.register("softmax")(Loss(softmax, "sampled", _scores))
LOSSES.register("in_batch")(Loss(in_batch_softmax, "in_batch", corrected))
LOSSES.register("full_softmax", aliases=("catalogue",))(Loss(full_softmax, "catalogue", _scores))
LOSSES.register("bce_pointwise")(Loss(bce, "none"))
LOSSES.register("mse")(Loss(mse, "none"))


def _float32(values: ArrayLike) -> jax.Array:
    return jnp.asarray(values, jnp.float32)


def _mask(where: ArrayLike | None, like: jax.Array) -> jax.Array:
    return jnp.broadcast_to(True if where is None else jnp.asarray(where, bool), like.shape)


def _differences(positive: ArrayLike, negative: ArrayLike, where: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """n - p, 0 where masked, and the mask. positive [...], negative [..., K] -> [..., K], bool [..., K]."""
    negative = _float32(negative)
    where = _mask(where, negative)
    # The select comes before any arithmetic so that not even an infinite entry reaches the gradient.
    positive = _float32(positive)[..., None]
    return jnp.where(where, negative, positive) - positive, where


def _log_one_plus_sum_exp(values: jax.Array, where: jax.Array) -> jax.Array:
    """log(1 + Σ e^v) over the values under the mask, keeping relative precision near 0. [..., K] -> [...]."""
    shift = jax.lax.stop_gradient(jnp.max(values, axis=-1, initial=0.0, where=where))
    total = jnp.sum(jnp.where(where, jnp.exp(values - shift[..., None]), 0.0), axis=-1)
    return shift + jnp.log1p(jnp.expm1(-shift) + total)
