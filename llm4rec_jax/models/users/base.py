"""User encoders: history, id or prompt of a user to a user embedding P_u.

An encoder of one's own is one class in one file. It names the inputs that it reads, and is trained accordingly:

    @USERS.register("last_item")
    class LastItem(UserEncoder):
        inputs = "history"

        def __call__(self, inputs):
            return inputs.history
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.registry import Registry

USERS: Registry = Registry("user model")

InputKind: TypeAlias = Literal["history", "masked_history", "user_id", "prompt"]

# Nothing reads a field that its encoder did not ask for, so the type of fields doesn't say that they may be None.
_NOT_GIVEN: Any = None


class UserInputs(NamedTuple):
    """Inputs of B users. An encoder gets at least the fields that its `inputs` names.

    Attributes:
      history: Item embeddings [B, H, D], the oldest first, padded at the end.
      history_mask: Which positions of the history are real, [B, H].
      masked_positions: Positions of the history that are hidden from the encoder, bool [B, H]; None hides none.
      users: Rows of the user table, [B].
      prompt: Pooled vectors of the histories written as text, [B, W].
      features: Features of the users by name, each a `Column` [B, …]. User encoders don't read them: the matcher fuses
        them with the encoder's output.
    """

    history: jax.Array = _NOT_GIVEN
    history_mask: jax.Array = _NOT_GIVEN
    masked_positions: jax.Array | None = None
    users: jax.Array = _NOT_GIVEN
    prompt: jax.Array = _NOT_GIVEN
    features: Mapping[str, Any] | None = None


class UserEncoder(nn.Module):
    """Base of user encoders.

    Class attributes:
      inputs: The kind of inputs that are read, which decides how the encoder is trained:
        "history": `history` and `history_mask` to [B, H, D]. The embedding at position t reads items 0…t and nothing
          later, so one pass trains on every position, and a user's embedding is the one at the last real item.
        "masked_history": `masked_positions` too. At masked positions the output predicts the item that was there. With
          none masked, every position has the embedding that follows the whole history. See `masking`.
        "user_id": `users` to [B, 1, D]. See `known_users`.
        "prompt": `prompt` to [B, 1, D].
    """

    inputs: ClassVar[InputKind] = "history"

    def __call__(self, inputs: UserInputs) -> jax.Array:
        """Inputs of B users to user embeddings, [B, H, D] or [B, 1, D]."""
        raise NotImplementedError

    @property
    def known_users(self) -> int | None:
        """Number of users that have a vector each, and are the only ones that can be embedded; None: anybody can."""
        return None

    @property
    def masking(self) -> tuple[float, float] | None:
        """Probability that training masks a position, and share of windows in which it masks only the last one."""
        return None


def at_last_position(user_embeddings: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the user embeddings [B, D] at the last real position of [B, H, D]; zeros for an empty history.

    Args:
      user_embeddings: [B, H, D].
      mask: Which positions are real, [B, H]; padding comes last.

    Example:
      >>> embeddings = jnp.array([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
      >>> at_last_position(embeddings, jnp.array([[1, 1, 0], [0, 0, 0]])).tolist()
      [[2.0], [0.0]]
    """
    length = mask.astype(jnp.int32).sum(-1)
    index = jnp.maximum(length - 1, 0)[:, None, None]
    return jnp.take_along_axis(user_embeddings, index, axis=1)[:, 0] * (length > 0)[:, None]


def causal(mask: jax.Array) -> jax.Array:
    """Returns which positions [B, H, H] each position may read: position t the real items s ≤ t of mask [B, H]."""
    length = mask.shape[-1]
    return jnp.tril(jnp.ones((length, length), bool)) & mask.astype(bool)[:, None, :]
