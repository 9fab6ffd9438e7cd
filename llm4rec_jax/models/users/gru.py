"""A recurrent network over the history."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.users.base import USERS, UserEncoder, UserInputs


@USERS.register("gru")
class Gru(UserEncoder):
    """A gated recurrent unit (Hidasi et al. 2016, GRU4Rec, arXiv 1511.06939).

    Attributes:
      dropout: Rate on the item embeddings, used when a dropout rng is given.
    """

    dropout: float = 0.2

    @nn.compact
    def __call__(self, inputs: UserInputs) -> jax.Array:
        x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(inputs.history)
        # Padding comes last, so the states at real positions never see it.
        return jnp.asarray(nn.RNN(nn.GRUCell(x.shape[-1]), name="gru")(x))
