"""Twelve baselines on MovieLens-100k, leave-one-out, the whole catalogue ranked.

    python -m experiments.sweep --config=configs/baselines_movielens.py --workdir=runs/baselines --workers=2
    python -m experiments.train --config=configs/baselines_movielens.py:ease --workdir=runs/ease

`:arg` is one of popularity, random, item_knn, user_knn, tfidf, ease, which are fitted in closed form, and bpr_mf,
sasrec, two_tower, bert4rec, gru4rec, lightgcn, which are trained by the loop that trains everything here.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import movielens_100k
from experiments.reports.spec import Table
from experiments.sweeps.trials import Trial
from llm4rec_jax.registry import unknown_name

SEEDS = (0, 1, 2)

# Options of the closed forms.
FITTED: dict[str, dict[str, Any]] = {
    "popularity": {},
    "random": {},
    "item_knn": {"k": 100},
    "user_knn": {"k": 100},
    "tfidf": {},
    "ease": {"l2": 250.0},
}
# Pairs of an interaction and one drawn item, many at a time.
PAIRS: dict[str, Any] = {
    "loss.name": "bpr",
    "train.batch_size": 2048,
    "train.learning_rate": 3e-3,
    "train.weight_decay": 1e-3,
    "train.steps": 2400,
    "train.eval_every": 100,
}
# Changes of the trained ones to configs/movielens_100k.py:id.
TRAINED: dict[str, dict[str, Any]] = {
    # Matrix factorisation over pairs (Rendle et al. 2009).
    "bpr_mf": {"model.users": "mf", **PAIRS},
    # Kang & McAuley 2018, with the softmax over the catalogue in place of one negative.
    "sasrec": {"model.users": "transformer"},
    # Two networks over ids, in-batch softmax with the correction of Yi et al. 2019.
    "two_tower": {"model.users": "two_tower", "model.tower": "mlp", "loss.name": "in_batch"},
    # Sun et al. 2019.
    "bert4rec": {"model.users": "bert4rec", "train.steps": 1200, "train.eval_every": 100},
    # Hidasi et al. 2016, with the softmax over the catalogue.
    "gru4rec": {"model.users": "gru"},
    # He et al. 2020.
    "lightgcn": {"model.users": "lightgcn", **PAIRS},
}
ARGS = (*FITTED, *TRAINED)

# By configs/baselines_movielens_tuning.py, on validation; where nothing stands here, the above was best.
CHOSEN: dict[str, dict[str, Any]] = {
    "sasrec": {"train.learning_rate": 1e-2},
    "gru4rec": {"train.learning_rate": 1e-2},
    "lightgcn": {"train.learning_rate": 1e-2, "model.user_options.lightgcn.layers": 1},
}

# Settings compared on validation. Options of closed forms are the usual ones.
TRIED = {**dict.fromkeys(FITTED, 1), **dict.fromkeys(TRAINED, 6), "lightgcn": 9}
_SOURCE = "RecBole 1.2.1 with its defaults, on the same split"
PUBLISHED = [
    ("Pop", {"hr@10": 0.0710, "ndcg@10": 0.0354}, _SOURCE),
    ("ItemKNN", {"hr@10": 0.1145, "ndcg@10": 0.0629}, _SOURCE),
    ("BPR", {"hr@10": 0.1241, "ndcg@10": 0.0673}, _SOURCE),
    ("EASE", {"hr@10": 0.1347, "ndcg@10": 0.0706}, _SOURCE),
]


def get_config(arg: str = "sasrec") -> ConfigDict:
    """The configuration of one baseline."""
    if arg not in ARGS:
        raise ValueError(unknown_name("baseline of configs/baselines_movielens.py", arg, ARGS))
    config: Any = movielens_100k.get_config("id")
    with config.unlocked():
        if arg in FITTED:
            config.baseline.name = arg
            config.baseline.options = ConfigDict(FITTED[arg])
            config.inputs = "text" if arg == "tfidf" else "id"
        else:
            config.update_from_flattened_dict(TRAINED[arg])
            config.train.checkpoint_every = config.train.eval_every
            config.train.patience = 10
            config.update_from_flattened_dict(CHOSEN.get(arg, {}))
    return config


def sweep() -> list[Trial]:
    """Closed forms once, the rest with every seed."""
    once = [Trial(name, name, {}, group=name) for name in FITTED]
    trained = [Trial(f"{name}-{seed}", name, {"seed": seed}, group=name) for name in TRAINED for seed in SEEDS]
    return [*once, *trained]


def table() -> Table:
    """Closed forms, then what is trained, against matrix factorisation; RecBole's figures below."""
    return Table(
        rows=({name: name for name in FITTED}, {name: name for name in TRAINED}),
        metrics=("hr@10", "ndcg@10"),
        costs=("parameters", "step", "time"),
        tried=TRIED,
        baseline="bpr_mf",
        published=PUBLISHED,
        caption="MovieLens-100k.",
        label="baselines-movielens",
    )
