"""Attention over the history."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.users.base import USERS, UserEncoder, UserInputs, causal


@USERS.register("attention")
class Attention(UserEncoder):
    """Additive attention over the items so far (Wu et al. 2019, NRMS, equations 11 and 12).

    Attributes:
      hidden: Width of the attention's hidden layer.
    """

    hidden: int = 64

    @nn.compact
    def __call__(self, inputs: UserInputs) -> jax.Array:
        items, allowed = inputs.history, causal(inputs.history_mask)
        hidden = jnp.tanh(nn.Dense(self.hidden, name="hidden")(items))
        logits = nn.Dense(1, use_bias=False, name="query")(hidden)[..., 0]
        weights = jax.nn.softmax(jnp.where(allowed, logits[:, None, :], jnp.finfo(items.dtype).min), axis=-1) * allowed
        return jnp.einsum("bts,bsd->btd", weights, items)
