"""A user model that reads a history in both directions and fills its gaps."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.users.base import USERS, blocks


@USERS.register("bidirectional")
class Bidirectional(nn.Module):
    """BERT4Rec (Sun et al. 2019, arXiv 1904.06690), with pre-norm blocks and scores against the items themselves.

    Trained to say what stood at hidden positions; the profile of a user is what it says of one hidden position behind
    the history.

    Attributes:
      layers, heads: depth, and attention heads a layer.
      ffn: width of the feed-forward layer, as a multiple of D.
      dropout: on embeddings and both sublayers, when a dropout rng is given.
      positions: the longest history.
      share: of the positions, are hidden in training.
      only_last: the share of training windows in which only the last position is hidden, as in use.
    """

    reads = "gaps"
    layers: int = 2
    heads: int = 2
    ffn: int = 4
    dropout: float = 0.2
    positions: int = 100
    share: float = 0.2
    only_last: float = 0.2

    @nn.compact
    def __call__(self, items: jax.Array, mask: jax.Array, hidden: jax.Array | None = None) -> jax.Array:
        """Item vectors [B, H, D], mask [B, H], hidden [B, H] or None to user embeddings [B, H, D]; see `users.reads`."""
        mask = mask.astype(bool)
        length = None
        if hidden is None:
            # One more position: the first that is not real becomes the hidden one.
            length = mask.sum(-1)
            items, mask = jnp.pad(items, ((0, 0), (0, 1), (0, 0))), jnp.pad(mask, ((0, 0), (0, 1)))
            hidden = jnp.arange(mask.shape[1]) == length[:, None]
            mask = mask | hidden
        size, width = items.shape[1:]
        if size > self.positions + 1:
            raise ValueError(
                f"a history of {size - 1} items and the one that follows, but the user model has {self.positions} "
                "positions"
            )
        init = nn.initializers.normal(0.02)
        x = jnp.where(hidden[..., None], self.param("hidden", init, (width,)), items)
        allowed = jnp.broadcast_to(mask[:, None, :], (mask.shape[0], size, size))
        x = blocks(self, x, allowed, self.positions + 1)
        if length is None:
            return x
        profile = jnp.take_along_axis(x, length[:, None, None], axis=1)
        return jnp.broadcast_to(profile, (x.shape[0], size - 1, width))
