"""Trains embeddings of a knowledge graph, whose vectors of items are a feature of a recommender.

    python -m experiments.graph --workdir=runs/graph --out=graph.npz --triples=triples.csv --links=links.csv

The vectors are read by
`--config.features.item_options="{'graph': {'kind': 'vectors', 'path': 'graph.npz'}}"`. The last line of standard output
is one JSON object with the filtered MRR and Hits@k of validation and test.
"""

import io
from pathlib import Path

import numpy as np
from absl import flags

from experiments.cli import command
from llm4rec_jax.data.sources import load
from llm4rec_jax.data.sources.knowledge_graph import read_graph, renumbered
from llm4rec_jax.io import write_bytes
from llm4rec_jax.models.graphs.triples import TRIPLE_MODELS
from llm4rec_jax.tasks.triples import TripleTask, item_vectors, split_triples
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.loop import train

_OUT = flags.DEFINE_string("out", None, "The .npz file of vectors to write.", required=True)
_TRIPLES = flags.DEFINE_string("triples", None, "A .kg file, or a table of head, relation and tail.", required=True)
_LINKS = flags.DEFINE_string("links", None, "A .link file, or a table of item_id and entity_id.")
_MOVIES = flags.DEFINE_string(
    "movies", None, "movies.csv of MovieLens, where links have its ids and the items are those of MovieLens-100k."
)
_MODEL = flags.DEFINE_enum("model", "complex", sorted(TRIPLE_MODELS), "The model of triples.")
_WIDTH = flags.DEFINE_integer("width", 64, "Width of the vectors.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 2000, "Number of optimizer steps.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 512, "Number of triples in a batch.", lower_bound=1)
_RATE = flags.DEFINE_float("learning_rate", 3e-3, "Learning rate.", lower_bound=0.0)
_HELD_OUT = flags.DEFINE_integer("held_out", 1000, "Number of triples that validate, and that test.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of everything random.", lower_bound=0)


def main() -> None:
    out = Path(_OUT.value or "")
    if out.suffix != ".npz" or not out.parent.is_dir():
        raise ValueError(f"--out={out} is not an .npz file in a folder that exists")
    graph = read_graph(_TRIPLES.value or "", _LINKS.value)
    if _MOVIES.value is not None:
        graph = renumbered(graph, load("movielens_100k").items, Path(_MOVIES.value))
    split = split_triples(graph, _HELD_OUT.value, _SEED.value)
    model = TRIPLE_MODELS.build(
        _MODEL.value, num_entities=len(graph.entities), num_relations=len(graph.relations), width=_WIDTH.value
    )
    every = max(_STEPS.value // 10, 1)
    config = TrainConfig(
        seed=_SEED.value,
        steps=_STEPS.value,
        batch_size=_BATCH.value,
        learning_rate=_RATE.value,
        metric="mrr",
        eval_every=every,
        checkpoint_every=every,
        log_every=every,
    )
    task = TripleTask(model, split, config)
    trained = train(task, config, command.workdir())
    vectors = item_vectors(graph, trained.trainable)
    buffer = io.BytesIO()
    np.savez(buffer, ids=vectors["ids"], vectors=vectors["vectors"])
    write_bytes(out, buffer.getvalue())
    command.answer(
        {
            "entities": len(graph.entities),
            "triples": len(graph.triples),
            "items": len(vectors["ids"]),
            **{part: task.evaluate_part(trained.trainable, part) for part in ("validation", "test")},
        }
    )


if __name__ == "__main__":
    command.run(main)
