"""MovieLens-100k, leave-one-out, the whole catalogue ranked: features of movies and users beside ids and text.

    python -m experiments.graph --workdir=runs/graph --out=graph.npz --triples=ml-100k.kg --movies=movies.csv
    python -m experiments.sweep --config=configs/features_movielens.py --workdir=runs/features
    python -m experiments.tables runs/features

`:arg` is one of base (ids and frozen text), year, genres, users (age, gender and occupation), all (these three) and
graph, which reads the vectors in graph.npz. docs/guides/features.md says where ml-100k.kg and movies.csv come from.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import movielens_100k
from experiments.reports.spec import Table
from experiments.sweeps.trials import Trial
from llm4rec_jax.registry import unknown_name

ARGS = ("base", "year", "genres", "users", "all", "graph")
SEEDS = (0, 1, 2)


def get_config(arg: str = "all") -> ConfigDict:
    """The configuration of one row."""
    if arg not in ARGS:
        raise ValueError(unknown_name("row of configs/features_movielens.py", arg, ARGS))
    config: Any = movielens_100k.get_config("id+text")
    with config.unlocked():
        if arg in ("year", "all"):
            config.inputs += "+year"
            config.features.item_options.year = ConfigDict({"embedding": "piecewise_linear"})
        if arg in ("genres", "all"):
            config.inputs += "+genres"
            config.features.item_options.genres = ConfigDict({"separator": ", "})
        if arg in ("users", "all"):
            config.features.users = "age+gender+occupation"
            config.features.user_options.age = ConfigDict({"kind": "numeric", "embedding": "piecewise_linear"})
        if arg == "graph":
            config.inputs += "+graph"
            config.features.item_options.graph = ConfigDict({"kind": "vectors", "path": "graph.npz"})
    config.lock()
    return config


def sweep() -> list[Trial]:
    """Every row with every seed."""
    return [Trial(f"{arg}-{seed}", arg, {"seed": seed}, group=arg) for arg in ARGS for seed in SEEDS]


def table() -> Table:
    """Accuracy against ids and text."""
    return Table(metrics=("ndcg@10", "hr@10"), costs=("step",), baseline="base")
