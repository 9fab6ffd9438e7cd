"""Rating heads: text vectors and the ratings of a history to the logit of a like.

Heads read vectors of unit length about a common centre. Each starts at what the liked share of the history says,
log((likes + 1) / (dislikes + 1)), by Laplace's rule of succession.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.registry import Registry

RATING_HEADS: Registry = Registry("rating head")


def laplace(share: jax.Array, count: jax.Array) -> jax.Array:
    """Returns the logit of a like by Laplace's rule of succession.

    Args:
      share: Share of likes, [...].
      count: Number of ratings that it is the share of, [...].

    Returns:
      log((share · count + 1) / ((1 - share) · count + 1)), [...].

    Example:
      >>> [round(float(logit), 3) for logit in laplace(jnp.array([0.5, 1.0]), jnp.array([4.0, 1.0]))]
      [0.0, 0.693]
    """
    return jnp.log(share * count + 1.0) - jnp.log((1.0 - share) * count + 1.0)


class RatingHead(nn.Module):
    """Base of rating heads.

    Class attributes:
      reads_history: Whether the head reads the vectors of the history's items. Otherwise the target's vector is that of
        a prompt, which tells history and target.
    """

    reads_history: ClassVar[bool] = True

    def __call__(
        self, target: jax.Array, history: jax.Array | None, liked: jax.Array, visible: jax.Array, age: jax.Array
    ) -> jax.Array:
        """Returns logits [B, T] of T targets for each of B histories.

        Args:
          target: Vectors of targets or prompts, [B, T, W].
          history: Vectors of the history's items, [B, H, W]; None where prompts are read.
          liked: Whether an item of the history is liked, float [B, H] in {0, 1}.
          visible: Which ratings may be read for a target, float [B, T, H] in {0, 1}.
          age: Number of ratings between that of the history and the target, float [B, T, H].
        """
        raise NotImplementedError


@RATING_HEADS.register("text")
class PromptHead(RatingHead):
    """The logit a + √W w · P_u plus the prior, where P_u = M(D_u) is the vector of a prompt.

    Attributes:
      prior: Whether the logit of the liked share is added.
    """

    reads_history: ClassVar[bool] = False
    prior: bool = True

    @nn.compact
    def __call__(
        self, target: jax.Array, history: jax.Array | None, liked: jax.Array, visible: jax.Array, age: jax.Array
    ) -> jax.Array:
        scale = target.shape[-1] ** 0.5
        logit = nn.Dense(1, kernel_init=nn.initializers.zeros, name="output")(scale * target)[..., 0]
        if not self.prior:
            return logit
        count = visible.sum(-1)
        likes = (visible * liked[:, None]).sum(-1)
        return logit + laplace(likes / jnp.maximum(count, 1.0), count)


@RATING_HEADS.register("hierarchical")
class SignedAttention(RatingHead):
    """A mean of the user's ratings, weighted towards items like the target, plus the popularity of the target.

        α_h ∝ exp(c cos(x_t, x_h) − r age_h)
        logit = a + b Laplace(Σ α_h liked_h, n) + q(x_t) − d Σ α_h q(x_h),    q(x) = w · x

    At the start w, a and d are zero and b is one, so the logit is that of the liked share, weighted by c and r. The
    term in d compares the user's likes with those of others for the same items.

    Attributes:
      start_closeness, start_recency: Initial c and r; when both are zero all ratings have the same weight.
    """

    start_closeness: float = 0.0
    start_recency: float = 0.0

    @nn.compact
    def __call__(
        self, target: jax.Array, history: jax.Array | None, liked: jax.Array, visible: jax.Array, age: jax.Array
    ) -> jax.Array:
        if history is None:
            raise ValueError("the rating head 'hierarchical' reads the vectors of the history's items, not prompts")

        def number(name: str, start: float = 0.0) -> jax.Array:
            return self.param(name, nn.initializers.constant(start), ())

        closeness = number("closeness", self.start_closeness) * jnp.einsum("btw,bhw->bth", target, history)
        logits = jnp.where(
            visible > 0, closeness - number("recency", self.start_recency) * age, jnp.finfo(jnp.float32).min
        )
        weights = jax.nn.softmax(logits, axis=-1) * visible
        quality = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.zeros, name="quality")
        share = jnp.einsum("bth,bh->bt", weights, liked)
        others = jnp.einsum("bth,bh->bt", weights, quality(history)[..., 0])
        logit = number("mean") + number("share", 1.0) * laplace(share, visible.sum(-1))
        return logit + quality(target)[..., 0] - number("discount") * others
