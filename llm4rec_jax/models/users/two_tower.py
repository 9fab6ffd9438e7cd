"""The user side of a two-tower model."""

import flax.linen as nn
import jax

from llm4rec_jax.models.users.base import USERS, UserEncoder, UserInputs
from llm4rec_jax.models.users.mean import running_mean


@USERS.register("two_tower", aliases=("tower",))
class TwoTower(UserEncoder):
    """A network over the mean of the items so far, as in Covington et al. 2016 (doi 10.1145/2959100.2959190).

    Attributes:
      hidden: Width of the hidden layer.
      dropout: Rate on the hidden layer, used when a dropout rng is given.
    """

    hidden: int = 128
    dropout: float = 0.2

    @nn.compact
    def __call__(self, inputs: UserInputs) -> jax.Array:
        x = nn.LayerNorm(name="norm")(running_mean(inputs.history, inputs.history_mask))
        x = jax.nn.gelu(nn.Dense(self.hidden, name="hidden")(x))
        x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
        return nn.Dense(inputs.history.shape[-1], name="output")(x)
