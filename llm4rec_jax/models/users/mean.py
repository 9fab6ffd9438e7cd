"""The mean of the history."""

import jax
import jax.numpy as jnp

from llm4rec_jax.models.users.base import USERS, UserEncoder, UserInputs


@USERS.register("mean")
class Mean(UserEncoder):
    """The mean of the items so far.

    Example:
      >>> history = jnp.array([[[2.0], [4.0], [9.0]]])
      >>> Mean().apply({}, UserInputs(history, jnp.array([[True, True, False]])))[0, :2].tolist()
      [[2.0], [3.0]]
    """

    def __call__(self, inputs: UserInputs) -> jax.Array:
        return running_mean(inputs.history, inputs.history_mask)


def running_mean(items: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean [B, H, D] of the real items up to each position of [B, H, D]; mask is [B, H]."""
    kept = mask.astype(items.dtype)[..., None]
    return jnp.cumsum(items * kept, axis=1) / jnp.maximum(jnp.cumsum(kept, axis=1), 1.0)
