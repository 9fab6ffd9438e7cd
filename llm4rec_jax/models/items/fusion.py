"""Fusions: the vectors of several features to one embedding, one class each.

A feature that a row lacks is masked: nothing of its layer enters the row's embedding, and where a fusion weighs
features against each other, the others take its share.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.registry import Registry

FUSIONS: Registry = Registry("fusion of features")


class States(NamedTuple):
    """A feature that has the hidden states of several layers of an encoder in the place of one vector.

    Attributes:
      values: [..., K, W], the states of K layers.
    """

    values: jax.Array


class Fusion(nn.Module):
    """Base of fusions.

    Attributes:
      width: D.
      reads_states: Whether the fusion is for features that are `States`.
    """

    width: int

    reads_states: ClassVar[bool] = False

    def __call__(self, parts: Sequence[jax.Array], present: jax.Array | None) -> jax.Array:
        """The vectors of M features, each [..., D], to embeddings [..., D].

        Args:
          parts: Vectors by feature.
          present: Which features a row has, [..., M]; None means all.
        """
        raise NotImplementedError


@FUSIONS.register("sum")
class Sum(Fusion):
    """The sum of the features that are present."""

    def __call__(self, parts: Sequence[jax.Array], present: jax.Array | None) -> jax.Array:
        if present is not None:
            parts = [jnp.where(present[..., m, None], part, 0.0) for m, part in enumerate(parts)]
        return sum(parts[1:], parts[0])


@FUSIONS.register("concat", aliases=("concatenation",))
class Concat(Fusion):
    """A network over the concatenation of the features. A trained vector stands in the place of a missing one.

    Attributes:
      hidden: Width of the hidden layer with GELU; None is a linear map.
      dropout: Rate on the hidden layer, used when a dropout rng is given.
    """

    hidden: int | None = 128
    dropout: float = 0.0

    @nn.compact
    def __call__(self, parts: Sequence[jax.Array], present: jax.Array | None) -> jax.Array:
        if present is not None:
            shape = (len(parts), self.width)
            missing = jnp.asarray(self.param("missing", nn.initializers.normal(0.02), shape))
            parts = [jnp.where(present[..., m, None], part, missing[m]) for m, part in enumerate(parts)]
        x = jnp.concatenate(parts, axis=-1)
        if self.hidden is not None:
            x = jax.nn.gelu(nn.Dense(self.hidden, name="hidden")(x))
            x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
        return nn.Dense(self.width, name="output")(x)


@FUSIONS.register("gated")
class Gated(Fusion):
    """Gated multimodal units (Arevalo et al. 2017, arXiv 1702.01992, equation 1) for any number of features.

    Each feature passes a tanh layer and a gate for every dimension, which reads all features.
    """

    @nn.compact
    def __call__(self, parts: Sequence[jax.Array], present: jax.Array | None) -> jax.Array:
        if present is not None:
            parts = [jnp.where(present[..., m, None], part, 0.0) for m, part in enumerate(parts)]
        everything = jnp.concatenate(parts, axis=-1)
        fused = []
        for m, part in enumerate(parts):
            gate = jax.nn.sigmoid(nn.Dense(self.width, name=f"gate_{m}")(everything))
            fused.append(gate * jnp.tanh(nn.Dense(self.width, name=f"hidden_{m}")(part)))
        return Sum(self.width)(fused, present)


@FUSIONS.register("attention")
class AttentionOverFeatures(Fusion):
    """The mean of the features that are present, weighted by additive attention (Bahdanau et al. 2015).

    The weights of a row are softmax over m of q · tanh(W x_m + b_m).
    """

    @nn.compact
    def __call__(self, parts: Sequence[jax.Array], present: jax.Array | None) -> jax.Array:
        x = jnp.stack(parts, axis=-2)
        bias = self.param("bias", nn.initializers.zeros, (len(parts), self.width))
        hidden = jnp.tanh(nn.Dense(self.width, use_bias=False, name="hidden")(x) + bias)
        scores = nn.Dense(1, use_bias=False, name="query")(hidden)[..., 0]
        if present is None:
            weights = jax.nn.softmax(scores)
        else:
            # A row without any feature has zeros.
            weights = jax.nn.softmax(jnp.where(present, scores, -1e9)) * present
        return (x * weights[..., None]).sum(-2)
