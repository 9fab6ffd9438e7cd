"""The language model as user encoder: it reads the history as one text."""

from typing import ClassVar

import flax.linen as nn
import jax

from llm4rec_jax.models.users.base import USERS, InputKind, UserEncoder, UserInputs


@USERS.register("text")
class Prompt(UserEncoder):
    """The pooled vector of a prompt, brought to the width of item embeddings.

    Attributes:
      project: Projection to D; its parameters stand in the place of this module's own.
    """

    inputs: ClassVar[InputKind] = "prompt"
    project: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.project)

    def __call__(self, inputs: UserInputs) -> jax.Array:
        return self.project(inputs.prompt)[:, None]
