"""The tree of all ids as static arrays, which a jitted beam search looks up.

Transitions are a table in compressed rows (CSR), and dense tables for the first levels, where nodes are few and have
many children each; STATIC (arXiv 2602.22647) arranges them so. Ids (0, 0), (0, 2) and (2, 1) with sizes (3, 3):

    level 0: the root 0                    dense [1, 3]: 0 → 0, 2 → 1, no node for 1
    level 1: nodes 0 = (0), 1 = (2)        offsets [0, 2, 3], codes [0, 2, 1]: children 0, 1 of node 0, and 2 of node 1
    level 2: leaves 0 = (0, 0), 1 = (0, 2), 2 = (2, 1)

Nodes of a level are numbered in the order of their ids, so the children of a node follow one another.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.semantic_ids.codes import SemanticIds

DENSE_ELEMENTS = 2**20
"""Levels whose table of all nodes and codes has at most this number of elements are dense."""


class Level(NamedTuple):
    """Transitions from the nodes of one level to their children.

    Attributes:
      dense: int32 [nodes, size], number of the child by code, -1 where there is no such child; None if sparse.
      offsets: int32 [nodes + 1]; the children of node n are the next level's offsets[n] … offsets[n + 1] - 1.
      codes: int32 [nodes of the next level], the code that leads to each.
      columns: int32 [W], 0 … W - 1; W is the level's size where it is dense, else the most children that a node has.
    """

    dense: jax.Array | None
    offsets: jax.Array
    codes: jax.Array
    columns: jax.Array

    def children(self, nodes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the children of nodes.

        Args:
          nodes: Numbers [...]; -1 has no children.

        Returns:
          Codes [..., W] and numbers [..., W] of the children, a number being -1 where there is no such child.
        """
        real, nodes = nodes[..., None] >= 0, jnp.maximum(nodes, 0)
        if self.dense is not None:
            numbers = jnp.where(real, self.dense[nodes], -1)
            return jnp.broadcast_to(self.columns, numbers.shape), numbers
        child = self.offsets[nodes][..., None] + self.columns
        inside = (child < self.offsets[nodes + 1][..., None]) & real
        # A place after the last one is clipped to it.
        return jnp.where(inside, self.codes[child], 0), jnp.where(inside, child, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Trie:
    """All ids of a catalogue.

    Attributes:
      levels: Transitions of each level.
      sizes: Number of codes of each level.
      node_of_item: int32 [L, I], the node of each level that an item is under; the last row has its leaf.
      num_nodes: Number of nodes below each level; the last is the number of different ids.
    """

    levels: tuple[Level, ...]
    sizes: tuple[int, ...]
    node_of_item: NDArray[np.int32]
    num_nodes: tuple[int, ...]


def build_trie(ids: SemanticIds, dense_elements: int = DENSE_ELEMENTS) -> Trie:
    """Builds the trie of a catalogue.

    Args:
      ids: Ids of all items.
      dense_elements: See `DENSE_ELEMENTS`; 0 makes every level sparse.

    Example:
      >>> trie = build_trie(SemanticIds(np.array([[2, 1], [0, 2], [0, 0]], np.int32), (3, 3)))
      >>> trie.node_of_item.tolist(), trie.num_nodes
      ([[1, 0, 0], [2, 1, 0]], (2, 3))
      >>> [array.tolist() for array in trie.levels[1].children(jnp.array([0]))]
      [[[0, 1, 2]], [[0, -1, 1]]]
    """
    parent, num_parents = np.zeros(len(ids.codes), np.int64), 1
    levels, rows, counts = [], [], []
    for level, size in enumerate(ids.sizes):
        keys, node = np.unique(parent * size + ids.codes[:, level], return_inverse=True)
        of_parent, codes = np.divmod(keys, size)
        offsets = np.searchsorted(of_parent, np.arange(num_parents + 1))
        dense, width = None, int(np.diff(offsets).max())
        if num_parents * size <= dense_elements:
            table, width = np.full((num_parents, size), -1, np.int32), size
            table[of_parent, codes] = np.arange(len(keys))
            dense = jnp.asarray(table)
        arrays = (jnp.asarray(array, jnp.int32) for array in (offsets, codes, np.arange(width)))
        levels.append(Level(dense, *arrays))
        rows.append(node.astype(np.int32))
        counts.append(len(keys))
        parent, num_parents = node.astype(np.int64), len(keys)
    return Trie(tuple(levels), ids.sizes, np.stack(rows), tuple(counts))
