"""LightGCN."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.models.graphs.base import GRAPHS, GraphEncoder, Links


@GRAPHS.register("lightgcn", aliases=("graph",))
class LightGcn(GraphEncoder):
    """LightGCN (He et al. 2020, arXiv 2002.02126), which smooths the vectors of users and items over their graph.

    Its vectors are the mean of layers 0 … K. A node's vector in a layer is the sum of its neighbours' in the layer
    below, weighted by 1 / √(degree · degree) (equations 3, 4 and 8). Entities of a knowledge graph are nodes too, next
    to the items that they belong to, as in the collaborative knowledge graph of KGAT (Wang et al. 2019, arXiv
    1905.07854), whose attention over relations is left out.

    Attributes:
      layers: K.
    """

    layers: int = 2

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        init = nn.initializers.normal(0.1)
        users = jnp.asarray(self.param("user", init, (self.num_users, self.width)))
        items = jnp.asarray(self.param("item", init, (self.num_items, self.width)))
        edges = self.edges
        entities = None
        if edges.num_entities:
            entities = jnp.asarray(self.param("entity", init, (edges.num_entities, self.width)))
        all_users, all_items = users, items
        for _ in range(self.layers):
            of_users, of_items = _neighbours(edges.interactions, users, items)
            if entities is not None:
                from_entities, entities = _neighbours(edges.facts, items, entities)
                of_items = of_items + from_entities
            users, items = of_users, of_items
            all_users, all_items = all_users + users, all_items + items
        return all_users / (self.layers + 1), all_items / (self.layers + 1)


def _neighbours(links: Links, first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Vectors [F, D] and [S, D] of both kinds of nodes to the weighted sums of their neighbours' vectors."""
    of_first = _gather(second[links.by_first[1]], links.weight_by_first, links.by_first[0], len(first))
    return of_first, _gather(first[links.by_second[0]], links.weight_by_second, links.by_second[1], len(second))


def _gather(vectors: jax.Array, weight: np.ndarray, to: np.ndarray, size: int) -> jax.Array:
    """Returns [size, D], the weighted sum of the vectors [E, D] that go `to` each row [E], which ascends."""
    return jax.ops.segment_sum(vectors * weight[:, None], jnp.asarray(to), size, indices_are_sorted=True)
