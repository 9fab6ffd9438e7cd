"""Choice of the next token from its scores."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
    """The distribution that next tokens are drawn from.

    Attributes:
      temperature: Scores are divided by it first.
      top_k: Only the k tokens of the highest scores are drawn; None for all.
      top_p: Then only the most probable tokens are drawn, as few as have this probability together; None for all
        (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def check(self) -> None:
        """Raises ValueError for a value out of range."""
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, must be above 0; `greedy` takes the likeliest token")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, must be above 0 and at most 1")

    def scores(self, logits: jax.Array) -> jax.Array:
        """Returns the scores that tokens are drawn by, -inf for those that are not drawn. [..., V] -> [..., V].

        Example:
          >>> Sampling(top_k=2).scores(jnp.array([1.0, 3.0, 2.0])).tolist()
          [-inf, 3.0, 2.0]
        """
        scores = logits / self.temperature
        if self.top_k is not None:
            least = jax.lax.top_k(scores, min(self.top_k, scores.shape[-1]))[0][..., -1:]
            scores = jnp.where(scores < least, -jnp.inf, scores)
        if self.top_p is not None:
            falling = jnp.flip(jnp.sort(scores, axis=-1), axis=-1)
            probabilities = jax.nn.softmax(falling, axis=-1)
            # A token is drawn where those before it do not have the share yet; so the first always is.
            before = jnp.cumsum(probabilities, axis=-1) - probabilities
            least = jnp.min(jnp.where(before < self.top_p, falling, jnp.inf), axis=-1, keepdims=True)
            scores = jnp.where(scores < least, -jnp.inf, scores)
        return scores

    def choose(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        """Draws tokens [B] from scores [B, V]."""
        return jax.random.categorical(key, self.scores(logits), axis=-1)
