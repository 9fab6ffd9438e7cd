"""LightGCN."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.models.graphs.base import GRAPHS, GraphEncoder


@GRAPHS.register("lightgcn", aliases=("graph",))
class LightGcn(GraphEncoder):
    """LightGCN (He et al. 2020, arXiv 2002.02126), which smooths the vectors of users and items over their graph.

    Its vectors are the mean of layers 0 … K. A node's vector in a layer is the sum of its neighbours' in the layer
    below, weighted by 1 / √(degree · degree) (equations 3, 4 and 8).

    Attributes:
      layers: K.
    """

    layers: int = 2

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        init = nn.initializers.normal(0.1)
        users = jnp.asarray(self.param("user", init, (self.num_users, self.width)))
        items = jnp.asarray(self.param("item", init, (self.num_items, self.width)))
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
    """Returns [size, D], the weighted sum of the vectors [E, D] that go `to` each row [E], which ascends."""
    return jax.ops.segment_sum(vectors * weight[:, None], jnp.asarray(to), size, indices_are_sorted=True)
