"""Gates and blocks of side networks, which read the states of an encoder that is never differentiated.

Fu et al. 2024, arXiv 2404.02059; the gates are those of Sung et al. 2022, arXiv 2206.06522.
"""

from collections.abc import Mapping

import jax


def gated(logit: jax.Array, below: jax.Array, state: jax.Array, temperature: float) -> jax.Array:
    """Mixes the side network's own state with a state of the encoder: μ below + (1 − μ) state, μ = σ(logit / T).

    Args:
      logit: The gate's parameter, a scalar.
      below: Output of the side network's block below, [..., S].
      state: State of the encoder, [..., S].
      temperature: T.

    Returns:
      [..., S].

    Example:
      >>> import jax.numpy as jnp
      >>> gated(jnp.zeros(()), jnp.array([2.0]), jnp.array([4.0]), temperature=0.1).tolist()
      [3.0]
    """
    gate = jax.nn.sigmoid(logit / temperature)
    return gate * below + (1 - gate) * state


def side_block(weights: Mapping[str, jax.Array], z: jax.Array) -> jax.Array:
    """Applies a bottleneck with a residual connection: z + GELU(z A + a) B + b.

    Args:
      weights: A as "down" [S, H], a as "down_bias" [H], B as "up" [H, S], b as "up_bias" [S].
      z: [..., S].

    Returns:
      [..., S].

    Example:
      >>> import jax.numpy as jnp
      >>> down, up = jnp.ones((2, 1)), jnp.zeros((1, 2))
      >>> weights = {"down": down, "down_bias": jnp.zeros(1), "up": up, "up_bias": jnp.ones(2)}
      >>> side_block(weights, jnp.array([3.0, 4.0])).tolist()
      [4.0, 5.0]
    """
    hidden = jax.nn.gelu(z @ weights["down"] + weights["down_bias"], approximate=False)
    return z + hidden @ weights["up"] + weights["up_bias"]
