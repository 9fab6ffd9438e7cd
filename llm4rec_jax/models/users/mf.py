"""Matrix factorization."""

from typing import ClassVar

import flax.linen as nn
import jax

from llm4rec_jax.models.users.base import USERS, InputKind, UserEncoder, UserInputs


@USERS.register("mf", aliases=("id",))
class MatrixFactorization(UserEncoder):
    """A vector for each user; with a dot product this is matrix factorization (Koren et al. 2009).

    Attributes:
      num_users: Number of users.
      width: D.
    """

    inputs: ClassVar[InputKind] = "user_id"
    num_users: int
    width: int

    @property
    def known_users(self) -> int:
        return self.num_users

    @nn.compact
    def __call__(self, inputs: UserInputs) -> jax.Array:
        init = nn.initializers.normal(0.02)
        return nn.Embed(self.num_users, self.width, embedding_init=init, name="table")(inputs.users)[:, None]
