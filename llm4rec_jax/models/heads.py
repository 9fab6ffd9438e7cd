"""Scoring heads F: a user embedding and an item embedding to a score.

A head of one's own is one class with a `__call__` that broadcasts:

    @HEADS.register("euclidean")
    class Euclidean(Head):
        def __call__(self, user, item):
            return -jnp.square(user - item).sum(-1)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.registry import Registry

HEADS: Registry = Registry("scoring head")


class Head(nn.Module):
    """Base of scoring heads."""

    def __call__(self, user: jax.Array, item: jax.Array) -> jax.Array:
        """User embeddings [..., D] and item embeddings [..., D], broadcast against each other, to scores [...]."""
        raise NotImplementedError

    def score_matrix(self, users: jax.Array, items: jax.Array) -> jax.Array:
        """Scores [B, N] of every user embedding [B, D] with every item embedding [N, D].

        Heads replace it where they can do without an array [B, N, D].
        """
        return self(users[:, None], items[None])


def _normalize(x: jax.Array) -> jax.Array:
    # The lower bound keeps the sum away from zero, where the square root has no gradient.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


@HEADS.register("dot")
class Dot(Head):
    """The dot product P · C.

    Example:
      >>> users, items = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0]])
      >>> Dot().apply({}, users, items, method="score_matrix").tolist()
      [[11.0, 2.0]]
    """

    def __call__(self, user: jax.Array, item: jax.Array) -> jax.Array:
        return (user * item).sum(-1)

    def score_matrix(self, users: jax.Array, items: jax.Array) -> jax.Array:
        return users @ items.T


@HEADS.register("cosine")
class Cosine(Head):
    """The cosine cos(P, C) / temperature.

    Attributes:
      temperature: Divisor of the cosine; softmax losses need it well below 1.
    """

    temperature: float = 0.05

    def __call__(self, user: jax.Array, item: jax.Array) -> jax.Array:
        return (_normalize(user) * _normalize(item)).sum(-1) / self.temperature

    def score_matrix(self, users: jax.Array, items: jax.Array) -> jax.Array:
        return _normalize(users) @ _normalize(items).T / self.temperature


@HEADS.register("linear")
class Linear(Head):
    """The linear layer w · [P; C] + b. It ranks items in the same order for every user."""

    def setup(self) -> None:
        self.profile = nn.Dense(1)
        self.context = nn.Dense(1, use_bias=False)

    def __call__(self, user: jax.Array, item: jax.Array) -> jax.Array:
        return self.profile(user)[..., 0] + self.context(item)[..., 0]

    def score_matrix(self, users: jax.Array, items: jax.Array) -> jax.Array:
        return self.profile(users) + self.context(items)[:, 0]


@HEADS.register("mlp")
class Mlp(Head):
    """A network v · ReLU(W [P; C] + b) + c (He et al. 2017, NCF, arXiv 1708.05031); W is split in two to broadcast.

    Attributes:
      hidden: Width of the hidden layer.
    """

    hidden: int = 64

    def setup(self) -> None:
        self.profile = nn.Dense(self.hidden)
        self.context = nn.Dense(self.hidden, use_bias=False)
        self.output = nn.Dense(1)

    def __call__(self, user: jax.Array, item: jax.Array) -> jax.Array:
        return self.output(jax.nn.relu(self.profile(user) + self.context(item)))[..., 0]


@HEADS.register("bilinear")
class Bilinear(Head):
    """The bilinear form Pᵀ W C, where W starts as the identity."""

    def __call__(self, user: jax.Array, item: jax.Array) -> jax.Array:
        return (self._times_weight(user) * item).sum(-1)

    def score_matrix(self, users: jax.Array, items: jax.Array) -> jax.Array:
        return self._times_weight(users) @ items.T

    @nn.compact
    def _times_weight(self, user: jax.Array) -> jax.Array:
        width = user.shape[-1]
        return user @ self.param("weight", lambda _, w: jnp.eye(w), width)
