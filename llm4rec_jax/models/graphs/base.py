"""Graph encoders: one set of vectors for users and one for items, smoothed over the graph of their interactions."""

from typing import ClassVar

import flax.linen as nn
import jax
import numpy as np

from llm4rec_jax.models.users.base import InputKind, UserEncoder, UserInputs
from llm4rec_jax.registry import Registry

GRAPHS: Registry = Registry("graph encoder")


class Edges:
    """The interactions of users and items in training, each pair once. A compiled program holds them as constants.

    Args:
      users: User rows, int [E].
      items: Item rows, int [E].

    Example:
      >>> edges = Edges(np.array([1, 0, 1, 1]), np.array([0, 0, 2, 2]))
      >>> edges.by_user.tolist(), edges.by_item.tolist()
      ([[0, 1, 1], [0, 0, 2]], [[0, 1, 1], [0, 0, 2]])
      >>> [round(weight, 2) for weight in edges.weight_by_user.tolist()]
      [0.71, 0.5, 0.71]
    """

    def __init__(self, users: np.ndarray, items: np.ndarray) -> None:
        pairs = np.unique(np.stack([users, items]), axis=1).astype(np.int32)
        self.by_user = pairs
        self.by_item = pairs[:, np.argsort(pairs[1], kind="stable")]
        # 1 / √(degree of the user · degree of the item), in both orders.
        weight = 1 / np.sqrt(np.bincount(pairs[0])[pairs[0]] * np.bincount(pairs[1])[pairs[1]])
        self.weight_by_user = weight.astype(np.float32)
        self.weight_by_item = self.weight_by_user[np.argsort(pairs[1], kind="stable")]


class GraphEncoder(nn.Module):
    """Base of graph encoders. `__call__` returns the smoothed vectors of all users [U, D] and all items [I, D].

    Attributes:
      num_users: U.
      num_items: I.
      width: D.
      edges: The graph.
    """

    num_users: int
    num_items: int
    width: int
    edges: Edges

    def __call__(self) -> tuple[jax.Array, jax.Array]:
        raise NotImplementedError


class GraphUsers(UserEncoder):
    """A user encoder that looks up a graph encoder's vectors of users."""

    inputs: ClassVar[InputKind] = "user_id"
    graph: GraphEncoder

    def setup(self) -> None:
        nn.share_scope(self, self.graph)

    @property
    def known_users(self) -> int:
        return self.graph.num_users

    def __call__(self, inputs: UserInputs) -> jax.Array:
        return self.graph()[0][inputs.users][:, None]


class GraphItems(nn.Module):
    """A layer of an item feature that looks up a graph encoder's vectors of items.

    It shares its parameters with `GraphUsers` by standing under the same name in the tree of parameters.
    """

    graph: GraphEncoder

    def setup(self) -> None:
        nn.share_scope(self, self.graph)

    def __call__(self, items: jax.Array) -> jax.Array:
        """Item rows [U] to [U, D]."""
        return self.graph()[1][items]
