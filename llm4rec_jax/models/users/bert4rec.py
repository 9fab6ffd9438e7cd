"""A transformer that reads the history in both directions."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.users.base import USERS, InputKind, UserInputs
from llm4rec_jax.models.users.transformer import TransformerBlocks


@USERS.register(
    "bert4rec", aliases=("bidirectional",), option_aliases={"share": "mask_prob", "only_last": "mask_last_prob"}
)
class Bert4Rec(TransformerBlocks):
    """BERT4Rec (Sun et al. 2019, arXiv 1904.06690), here with pre-norm blocks and scores against the items themselves.

    It is trained to predict the items at masked positions. A user's embedding is its output at one masked position
    behind the history.

    Attributes:
      mask_prob: Probability that training masks a position.
      mask_last_prob: Share of training windows in which only the last position is masked, as it is in use.
    """

    inputs: ClassVar[InputKind] = "masked_history"
    mask_prob: float = 0.2
    mask_last_prob: float = 0.2

    @property
    def masking(self) -> tuple[float, float]:
        return self.mask_prob, self.mask_last_prob

    @nn.compact
    def __call__(self, inputs: UserInputs) -> jax.Array:
        items, mask, masked = inputs.history, inputs.history_mask.astype(bool), inputs.masked_positions
        length = None
        if masked is None:
            # Appends the masked position. With H = 3 and the history [a, b, -], length is 2 and the encoder reads
            # [a, b, MASK, -]; the user's embedding is the output at position 2.
            length = mask.sum(-1)
            items, mask = jnp.pad(items, ((0, 0), (0, 1), (0, 0))), jnp.pad(mask, ((0, 0), (0, 1)))
            masked = jnp.arange(mask.shape[1]) == length[:, None]
            mask = mask | masked
        size, width = items.shape[1:]
        if size > self.positions + 1:
            raise ValueError(
                f"a history of {size - 1} items and the one that follows, but the user model has {self.positions} "
                "positions"
            )
        init = nn.initializers.normal(0.02)
        x = jnp.where(masked[..., None], self.param("hidden", init, (width,)), items)
        allowed = jnp.broadcast_to(mask[:, None, :], (mask.shape[0], size, size))
        x = self.blocks(x, allowed, self.positions + 1)
        if length is None:
            return x
        user_embeddings = jnp.take_along_axis(x, length[:, None, None], axis=1)
        return jnp.broadcast_to(user_embeddings, (x.shape[0], size - 1, width))
