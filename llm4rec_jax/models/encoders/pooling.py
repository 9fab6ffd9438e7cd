"""Hidden states of a text to one vector: [B, L, D] and mask [B, L] to [B, D]. A text without tokens gives zeros."""

import flax.linen as nn
import jax
import jax.numpy as jnp

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
    """The first token."""

    @nn.compact
    def __call__(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        return states[..., 0, :].astype(jnp.float32) * mask[..., :1]


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
