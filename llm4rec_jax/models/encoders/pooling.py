"""Hidden states of a text to one vector: [B, L, D] and mask [B, L] to [B, D]. A text without tokens gives zeros.

Several texts of a row are pooled from the same states: [B, 1, L, D] and masks [B, S, L] give [B, S, D].
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.layers.activations import gelu
from llm4rec_jax.registry import Registry

POOLINGS: Registry = Registry("pooling")


@POOLINGS.register("mean")
class Mean(nn.Module):
    """The mean over real tokens (Reimers & Gurevych 2019)."""

    @nn.compact
    def __call__(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        weights = mask.astype(jnp.float32)[..., None]
        return (states * weights).sum(-2) / jnp.maximum(weights.sum(-2), 1.0)


@POOLINGS.register("cls")
class Cls(nn.Module):
    """The first real token."""

    @nn.compact
    def __call__(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        return _state_at(jnp.argmax(mask, axis=-1), states, mask)


@POOLINGS.register("max")
class Max(nn.Module):
    """The maximum over real tokens, feature by feature."""

    @nn.compact
    def __call__(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        kept = mask.astype(bool)[..., None]
        states = states.astype(jnp.float32)
        highest = jnp.where(kept, states, jnp.finfo(jnp.float32).min).max(-2)
        return jnp.where(kept.any(-2), highest, 0.0)


@POOLINGS.register("attention")
class Attention(nn.Module):
    """Additive attention over tokens: softmax(v · tanh(W h + b)) (Wu et al. 2019, NRMS, equation 6)."""

    width: int = 64

    @nn.compact
    def __call__(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        states, kept = states.astype(jnp.float32), mask.astype(bool)
        hidden = jnp.tanh(nn.Dense(self.width, name="hidden")(states))
        logits = nn.Dense(1, use_bias=False, name="query")(hidden)[..., 0]
        weights = jax.nn.softmax(jnp.where(kept, logits, jnp.finfo(jnp.float32).min), axis=-1) * kept
        return jnp.einsum("...l,...ld->...d", weights, states)


@POOLINGS.register("last")
class Last(nn.Module):
    """The last real token, for language models in which only that token has read the whole text."""

    @nn.compact
    def __call__(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        mask = mask.astype(bool)
        # The index of the last 1: of the mask 0 1 1 0, its mirror image 0 1 1 0 has the first 1 at 1, so 4 - 1 - 1 = 2.
        last = mask.shape[-1] - 1 - jnp.argmax(mask[..., ::-1], axis=-1)
        return _state_at(last, states, mask)


def _state_at(index: jax.Array, states: jax.Array, mask: jax.Array) -> jax.Array:
    """The state of one token of each text; zeros for a text without tokens."""
    state = jnp.take_along_axis(states, index[..., None, None], axis=-2)[..., 0, :]
    return state.astype(jnp.float32) * mask.astype(bool).any(-1, keepdims=True)


@POOLINGS.register("weighted_mean")
class WeightedMean(nn.Module):
    """The mean with weights 1, 2, 3, … over real tokens: late tokens have read more (Muennighoff 2022, SGPT)."""

    @nn.compact
    def __call__(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        kept = mask.astype(jnp.float32)
        weights = (jnp.cumsum(kept, axis=-1) * kept)[..., None]
        return (states * weights).sum(-2) / jnp.maximum(weights.sum(-2), 1.0)


@POOLINGS.register("mean_sqrt")
class MeanSqrt(nn.Module):
    """The sum over real tokens, divided by the square root of their number."""

    @nn.compact
    def __call__(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        weights = mask.astype(jnp.float32)[..., None]
        return (states * weights).sum(-2) / jnp.sqrt(jnp.maximum(weights.sum(-2), 1.0))


class Dense(nn.Module):
    """A linear layer with an activation on pooled vectors.

    Attributes:
      width: Width of its output.
      activation: Name in `DENSE_ACTIVATIONS`.
      bias: Whether it has a bias.
    """

    width: int
    activation: str = "identity"
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return DENSE_ACTIVATIONS[self.activation](nn.Dense(self.width, use_bias=self.bias, name="linear")(x))


DENSE_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": gelu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
}


class Normalize(nn.Module):
    """Vectors of length one; a vector of zeros stays what it is."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # The gradient of a norm is not finite at zero, so the square is bounded and not its root.
        return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))


class Steps(nn.Module):
    """Poolings side by side, then layers on the pooled vector, as a sentence-transformers folder describes them.

    Attributes:
      poolings: Names in `POOLINGS`; several are concatenated.
      layers: `Dense` and `Normalize`, in order.

    Example:
      >>> states, mask = jnp.array([[[3.0], [4.0], [9.0]]]), jnp.array([[1, 1, 0]])
      >>> Steps(("mean", "last", "max")).apply({}, states, mask).tolist()
      [[3.5, 4.0, 4.0]]
    """

    poolings: tuple[str, ...]
    layers: tuple[nn.Module, ...] = ()

    def output_width(self, width: int) -> int:
        """Width of the vectors for hidden states of that width."""
        widths = [layer.width for layer in self.layers if isinstance(layer, Dense)]
        return widths[-1] if widths else width * len(self.poolings)

    @nn.compact
    def __call__(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        x = jnp.concatenate([POOLINGS.build(name)(states, mask) for name in self.poolings], axis=-1)
        for layer in self.layers:
            x = layer(x)
        return x


def output_width(pooling: nn.Module, width: int) -> int:
    """Width of the vectors that a pooling makes of hidden states of that width."""
    return pooling.output_width(width) if isinstance(pooling, Steps) else width
