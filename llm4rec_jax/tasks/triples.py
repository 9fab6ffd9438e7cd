"""Embeddings of a knowledge graph: a model learns which entity completes a triple."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm4rec_jax import peft, sharding
from llm4rec_jax.data.sources.knowledge_graph import KnowledgeGraph
from llm4rec_jax.evaluation.links import filtered_ranks, link_metrics
from llm4rec_jax.models.graphs.triples import TripleModel
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.task import CheckpointableIterator, Params, partition_params
from llm4rec_jax.training.throughput import BatchStats


class TripleSplit(NamedTuple):
    """Triples for training, validation and test, each [n, 3]."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_triples(graph: KnowledgeGraph, held_out: int, seed: int = 0) -> TripleSplit:
    """Draws triples for validation and for the test, `held_out` each, whose entities stand in other triples too.

    Raises:
      ValueError: There are too few of them.
    """
    degree = np.bincount(graph.triples[:, [0, 2]].ravel(), minlength=len(graph.entities))
    (candidates,) = np.nonzero((degree[graph.triples[:, 0]] > 1) & (degree[graph.triples[:, 2]] > 1))
    if held_out < 1 or 2 * held_out > len(candidates) // 2:
        raise ValueError(
            f"held_out is {held_out}, must be between 1 and {len(candidates) // 4}: a quarter of the "
            f"{len(candidates):,} triples whose entities stand in others too"
        )
    drawn = np.random.default_rng(seed).choice(candidates, 2 * held_out, replace=False)
    train = np.delete(graph.triples, drawn, axis=0)
    return TripleSplit(train, graph.triples[drawn[:held_out]], graph.triples[drawn[held_out:]])


class TripleTask:
    """Learns to complete triples by softmax over all entities (Lacroix et al. 2018), and validates by filtered ranks.

    Args:
      model: A model of triples.
      split: The triples.
      config: Options of the run; its metric is one of "mrr", "hits@1", "hits@3" and "hits@10".
    """

    metrics = ("mrr", "hits@1", "hits@3", "hits@10")
    compute_dtype = jnp.float32
    batch_axes = 0

    def __init__(self, model: TripleModel, split: TripleSplit, config: TrainConfig) -> None:
        self.model, self.split, self.method = model, split, peft.create("frozen")
        self.batch_size = min(config.batch_size, len(split.train))
        self.notes = [f"{len(split.train):,} examples an epoch"]
        self._score = jax.jit(lambda params, triples: model.apply({"params": params["graph"]}, triples))

    def bind(self, mesh: Mesh) -> None:
        """Fixes the devices."""
        self._mesh = mesh

    def init(self, key: jax.Array) -> Params:
        """Draws the parameters."""
        drawn = jax.jit(self.model.init)(key, jnp.zeros((1, 3), jnp.int32))["params"]
        return partition_params(self.method, {"graph": drawn}, key)

    def constant_shapes(self, params: Params) -> dict[str, Any]:
        """Returns no shapes: nothing is computed before training."""
        return {}

    def prepare(self, params: Params) -> dict[str, Any]:
        """Returns no constants."""
        return {}

    def batches(self, seed: int) -> CheckpointableIterator:
        """Returns the stream of triples [B, 3], shuffled anew each epoch."""
        rows = grain.MapDataset.range(len(self.split.train)).seed(seed).shuffle().repeat(None)
        triples = rows.batch(self.batch_size, drop_remainder=True).map(lambda numbers: self.split.train[numbers])
        return iter(triples.to_iter_dataset())

    def place(self, batch: np.ndarray) -> jax.Array:
        """Splits the triples over the data axis where it divides them."""
        divides = len(batch) % self._mesh.shape["data"] == 0
        return sharding.put(batch, NamedSharding(self._mesh, PartitionSpec("data") if divides else PartitionSpec()))

    def place_together(self, batches: Sequence[np.ndarray]) -> jax.Array:
        """Stacks batches of several runs."""
        return jnp.stack([jnp.asarray(batch) for batch in batches])

    def loss(
        self,
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: jax.Array,
        key: jax.Array | None,
        item_micro_batch: int = 0,
    ) -> jax.Array:
        """Returns the mean cross entropy of tails and heads among all entities."""
        scored: Any = self.model.apply({"params": trainable["params"]["graph"]}, batch)
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(scores, batch[:, column])
            for scores, column in zip(scored, (2, 0), strict=True)
        ]
        return jnp.stack(losses).mean()

    def text_shapes(self, batch: jax.Array) -> list[tuple[int, int]]:
        """Returns no shapes: there are no texts."""
        return []

    def evaluate(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics of the validation part."""
        return self.evaluate_part(trainable, "validation")

    def evaluate_part(self, trainable: Mapping[str, Any], part: str) -> dict[str, float]:
        """Returns the filtered metrics of a part."""
        score = functools.partial(self._score, jax.tree.map(sharding.fetch, trainable["params"]))
        return link_metrics(filtered_ranks(score, getattr(self.split, part), np.concatenate(self.split)))

    def batch_stats(self, batch: np.ndarray) -> BatchStats:
        """Counts the entities."""
        entities = np.asarray(batch)[:, [0, 2]]
        return BatchStats(0, 0, len(np.unique(entities)), entities.size)

    def describe_batch(self, batch: np.ndarray) -> str:
        """Names the first triples of a batch."""
        return f"the triples {np.asarray(batch)[:5].tolist()} …"


def item_vectors(graph: KnowledgeGraph, trainable: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns "ids" [n] and "vectors" [n, D] of the items in the graph, as the feature `vectors` reads them."""
    entity = sharding.fetch(trainable["params"]["graph"]["entity"])
    return {"ids": np.array(list(graph.items)), "vectors": entity[list(graph.items.values())]}
