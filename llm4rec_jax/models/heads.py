"""Scoring heads F: a profile and a context to a score.

Each broadcasts: user embeddings [..., D] against item embeddings [..., D] give scores [...]. `score_matrix(P [B, D], C [N, D])` is [B, N],
the same scores without a [B, N, D] array where the head allows it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.registry import Registry

HEADS: Registry = Registry("scoring head")


def _unit(x: jax.Array) -> jax.Array:
    # The sum is kept from zero, where the square root has no gradient.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


@HEADS.register("dot")
class Dot(nn.Module):
    """P · C."""

    def __call__(self, profile: jax.Array, context: jax.Array) -> jax.Array:
        return (profile * context).sum(-1)

    def score_matrix(self, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
        return user_embeddings @ item_embeddings.T


@HEADS.register("cosine")
class Cosine(nn.Module):
    """cos(P, C) / temperature.

    Attributes:
      temperature: softmax losses want it well below 1.
    """

    temperature: float = 0.05

    def __call__(self, profile: jax.Array, context: jax.Array) -> jax.Array:
        return (_unit(profile) * _unit(context)).sum(-1) / self.temperature

    def score_matrix(self, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
        return _unit(user_embeddings) @ _unit(item_embeddings).T / self.temperature


@HEADS.register("linear")
class Linear(nn.Module):
    """w · [P; C] + b. Note that the ranking of items is then the same for every user."""

    def setup(self) -> None:
        self.profile = nn.Dense(1)
        self.context = nn.Dense(1, use_bias=False)

    def __call__(self, profile: jax.Array, context: jax.Array) -> jax.Array:
        return self.profile(profile)[..., 0] + self.context(context)[..., 0]

    def score_matrix(self, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
        return self.profile(user_embeddings) + self.context(item_embeddings)[:, 0]


@HEADS.register("mlp")
class Mlp(nn.Module):
    """v · ReLU(W [P; C] + b) + c (He et al. 2017, NCF, arXiv 1708.05031), with W split in two so that it broadcasts.

    Attributes:
      hidden: width of the hidden layer.
    """

    hidden: int = 64

    def setup(self) -> None:
        self.profile = nn.Dense(self.hidden)
        self.context = nn.Dense(self.hidden, use_bias=False)
        self.output = nn.Dense(1)

    def __call__(self, profile: jax.Array, context: jax.Array) -> jax.Array:
        return self.output(jax.nn.relu(self.profile(profile) + self.context(context)))[..., 0]

    def score_matrix(self, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
        return self(user_embeddings[:, None], item_embeddings[None])


@HEADS.register("bilinear")
class Bilinear(nn.Module):
    """Pᵀ W C, W the identity at the start."""

    def __call__(self, profile: jax.Array, context: jax.Array) -> jax.Array:
        return (self._turn(profile) * context).sum(-1)

    def score_matrix(self, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
        return self._turn(user_embeddings) @ item_embeddings.T

    @nn.compact
    def _turn(self, profile: jax.Array) -> jax.Array:
        width = profile.shape[-1]
        return profile @ self.param("weight", lambda _, w: jnp.eye(w), width)
