"""The graph that a graph encoder smooths over: the interactions of training, and facts about items."""

from pathlib import Path
from typing import Any

import numpy as np

from llm4rec_jax import sharding
from llm4rec_jax.data.sources.knowledge_graph import item_facts, read_graph, renumbered
from llm4rec_jax.data.splits.split import Split
from llm4rec_jax.models.graphs.base import GRAPHS, Edges
from llm4rec_jax.registry import unknown_name

_OPTIONS = ("path", "links", "movies_path")


def training_edges(users: str, options: dict[str, Any], split: Split) -> Edges | None:
    """Returns the graph of a split; None where the user model reads no graph.

    Args:
      users: Name of the user model.
      options: `path` of a knowledge graph, and `links` and `movies_path` where they are needed; empty for none.
      split: The data.

    Raises:
      ValueError: An option does not exist, or the user model reads no graph.
      DataError: No item has a fact, or a file is malformed.
    """
    if users not in GRAPHS:
        if options:
            raise ValueError(
                f"config.features.graph_options is for config.model.users={' or '.join(GRAPHS)}, and that is {users!r}"
            )
        return None
    data, train = split.dataset.interactions, split.train
    return Edges(data.user[train], data.item[train], _facts(split, options) if options else None)


def _facts(split: Split, options: dict[str, Any]) -> np.ndarray:
    for name in options.keys() - set(_OPTIONS):
        raise ValueError(unknown_name("option of config.features.graph_options", name, _OPTIONS))
    if "path" not in options:
        raise ValueError("config.features.graph_options has no path: give the file of its triples")
    graph, items = read_graph(options["path"], options.get("links")), split.dataset.items
    if movies := options.get("movies_path"):
        graph = renumbered(graph, items, Path(movies))
    return item_facts(graph, items["item_id"].to_list())


def digest_of_facts(edges: Edges | None) -> dict[str, str]:
    """Returns a hash of the facts, which come from files beside the data; nothing where there are none."""
    return {"graph": sharding.digest(edges.facts)} if edges is not None and edges.num_entities else {}
