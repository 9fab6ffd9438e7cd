"""Graph encoders: one set of vectors for users and one for items, smoothed over the graph of their interactions."""

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from llm4rec_jax.models.users.base import InputKind, UserEncoder, UserInputs
from llm4rec_jax.registry import Registry

GRAPHS: Registry = Registry("graph encoder")


class Links(NamedTuple):
    """Weighted edges between nodes of a first and a second kind, in the order of either.

    Attributes:
      by_first, by_second: Rows of the first and of the second kind, int [2, E], sorted by the one or the other.
      weight_by_first, weight_by_second: Weight of each edge, float [E].
    """

    by_first: np.ndarray
    by_second: np.ndarray
    weight_by_first: np.ndarray
    weight_by_second: np.ndarray


class Edges:
    """The interactions of users and items in training, and facts about items, each pair once.

    A compiled program holds them as constants. The weight of an edge is 1 / √(degree · degree) of its two nodes.

    Args:
      users: User rows, int [E].
      items: Item rows, int [E].
      facts: Item rows and entity rows of a knowledge graph, int [2, F]; None is a graph without entities.

    Attributes:
      interactions: Links of users and items.
      facts: Links of items and entities.
      num_entities: Number of entities.

    Example:
      >>> edges = Edges(np.array([1, 0, 1, 1]), np.array([0, 0, 2, 2]))
      >>> edges.interactions.by_first.tolist(), edges.interactions.by_second.tolist()
      ([[0, 1, 1], [0, 0, 2]], [[0, 1, 1], [0, 0, 2]])
      >>> [round(weight, 2) for weight in edges.interactions.weight_by_first.tolist()]
      [0.71, 0.5, 0.71]

      With one fact about item 2, its degree is 2, and the weight between it and user 1 is 1 / √(2 · 2).

      >>> edges = Edges(np.array([1, 0, 1, 1]), np.array([0, 0, 2, 2]), np.array([[2], [0]]))
      >>> [round(weight, 2) for weight in edges.interactions.weight_by_first.tolist()], edges.num_entities
      ([0.71, 0.5, 0.5], 1)
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, facts: np.ndarray | None = None) -> None:
        pairs = _distinct(np.stack([users, items]))
        known = _distinct(np.zeros((2, 0)) if facts is None else facts)
        degree = np.bincount(np.concatenate([pairs[1], known[0]]))
        self.num_entities = int(known[1].max(initial=-1)) + 1
        self.interactions = _links(pairs, np.bincount(pairs[0]), degree)
        self.facts = _links(known, degree, np.bincount(known[1]))


def _distinct(pairs: np.ndarray) -> np.ndarray:
    """Returns pairs [2, E] once each, sorted by the first row, then the second."""
    return np.unique(pairs, axis=1).astype(np.int32)


def _links(pairs: np.ndarray, first: np.ndarray, second: np.ndarray) -> Links:
    """Returns sorted pairs [2, E] with weights by the degrees of both kinds of nodes."""
    order = np.argsort(pairs[1], kind="stable")
    weight = (1 / np.sqrt(first[pairs[0]] * second[pairs[1]])).astype(np.float32)
    return Links(pairs, pairs[:, order], weight, weight[order])


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
