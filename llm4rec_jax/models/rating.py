"""Heads of the pointwise task: from text vectors and the answers of a history to the logit of a like.

Both take vectors of unit length about a common centre, and start at what the liked share says: log((likes + 1) /
(dislikes + 1)), Laplace's rule. `reads_history` says whether the vectors of the history are read.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.registry import Registry

ANSWERS: Registry = Registry("answering model")


def laplace(share: jax.Array, count: jax.Array) -> jax.Array:
    """The logit by Laplace's rule of succession of `share · count` likes among `count` answers; both [...]."""
    return jnp.log(share * count + 1.0) - jnp.log((1.0 - share) * count + 1.0)


@ANSWERS.register("text")
class PromptHead(nn.Module):
    """a + √W w · P_u, and the prior: P_u = M(D_u) is the vector of a prompt that tells history and target.

    Attributes:
      prior: False leaves the answers to what the encoder makes of the prompt.
    """

    reads_history = False
    prior: bool = True

    @nn.compact
    def __call__(
        self, target: jax.Array, history: jax.Array | None, liked: jax.Array, visible: jax.Array, age: jax.Array
    ) -> jax.Array:
        """As `SignedAttention`, with prompts [B, T, W] in place of targets; history is None."""
        scale = target.shape[-1] ** 0.5
        logit = nn.Dense(1, kernel_init=nn.initializers.zeros, name="output")(scale * target)[..., 0]
        if not self.prior:
            return logit
        count = visible.sum(-1)
        likes = (visible * liked[:, None]).sum(-1)
        return logit + laplace(likes / jnp.maximum(count, 1.0), count)


@ANSWERS.register("hierarchical")
class SignedAttention(nn.Module):
    """A user's answers are averaged with more weight on films like the target; what all like is added.

        α_h ∝ exp(c cos(x_t, x_h) − r age_h)
        logit = a + b Laplace(Σ α_h liked_h, n) + q(x_t) − d Σ α_h q(x_h),    q(x) = w · x

    At the start w, a and d are zero and b is one: the liked share, weighted by c and r. The term in d asks how much
    more the user likes the history's films than others do.

    Attributes:
      start_closeness, start_recency: c and r at the start; with both zero every answer has the same weight.
    """

    reads_history = True
    start_closeness: float = 0.0
    start_recency: float = 0.0

    @nn.compact
    def __call__(
        self, target: jax.Array, history: jax.Array | None, liked: jax.Array, visible: jax.Array, age: jax.Array
    ) -> jax.Array:
        """Logits [B, T].

        Args:
          target: [B, T, W] vectors of T targets for each of B histories.
          history: [B, H, W].
          liked: float [B, H] in {0, 1}.
          visible: float [B, T, H] in {0, 1}, the answers that may be read for a target.
          age: float [B, T, H], how many answers lie between.
        """
        assert history is not None

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
