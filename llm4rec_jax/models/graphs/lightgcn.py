"""Vectors of users and items that are smoothed over the graph of their interactions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.models.users.base import USERS


class Edges:
    """Who interacted with what in training, each pair once, as arrays that a compiled program holds.

    Args:
      users, items: int [E].
    """

    def __init__(self, users: np.ndarray, items: np.ndarray) -> None:
        pairs = np.unique(np.stack([users, items]), axis=1).astype(np.int32)
        self.by_user = pairs
        self.by_item = pairs[:, np.argsort(pairs[1], kind="stable")]
        # 1 / √(degree of the user · degree of the item), in both orders.
        weight = 1 / np.sqrt(np.bincount(pairs[0])[pairs[0]] * np.bincount(pairs[1])[pairs[1]])
        self.weight_by_user = weight.astype(np.float32)
        self.weight_by_item = self.weight_by_user[np.argsort(pairs[1], kind="stable")]


@USERS.register("graph")
class LightGcn(nn.Module):
    """LightGCN (He et al. 2020, arXiv 2002.02126): a user's vector, and `items`, those of the items.

    The vectors are the mean of the layers 0 … K, of which each is the sum over a node's neighbours in the layer below,
    weighted by 1 / √(degree · degree) (equations 3, 4 and 8).

    Attributes:
      num_users, num_items, width: U, I, D.
      edges: the graph.
      layers: K.
    """

    reads = "user"
    num_users: int
    num_items: int
    width: int
    edges: Edges
    layers: int = 2

    def setup(self) -> None:
        init = nn.initializers.normal(0.1)
        self.user_table = self.param("user", init, (self.num_users, self.width))
        self.item_table = self.param("item", init, (self.num_items, self.width))

    def __call__(self, users: jax.Array) -> jax.Array:
        """User rows [B] to [B, D]."""
        return self._smoothed()[0][users]

    def items(self) -> jax.Array:
        """The vectors of all items, [I, D]."""
        return self._smoothed()[1]

    def _smoothed(self) -> tuple[jax.Array, jax.Array]:
        users, items = self.user_table, self.item_table
        assert isinstance(users, jax.Array)
        assert isinstance(items, jax.Array)
        all_users, all_items = users, items
        edges = self.edges
        for _ in range(self.layers):
            users, items = (
                _gather(items[edges.by_user[1]], edges.weight_by_user, edges.by_user[0], self.num_users),
                _gather(users[edges.by_item[0]], edges.weight_by_item, edges.by_item[1], self.num_items),
            )
            all_users, all_items = all_users + users, all_items + items
        return all_users / (self.layers + 1), all_items / (self.layers + 1)


def _gather(vectors: jax.Array, weight: np.ndarray, to: np.ndarray, size: int) -> jax.Array:
    return jax.ops.segment_sum(vectors * weight[:, None], jnp.asarray(to), size, indices_are_sorted=True)
