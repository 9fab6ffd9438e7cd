"""MovieLens-100k, leave-one-out, the whole catalogue ranked: ids, frozen text, and text tuned in six ways.

    python -m experiments.train --config=configs/movielens_100k.py:lora --workdir=runs/lora

`:arg` is one of id, frozen, full, lora, bitfit, houlsby, prefix, id+text.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base
from llm4rec_jax.registry import unknown_name

METHODS = ("frozen", "full", "lora", "bitfit", "houlsby", "prefix")
ARGS = (*METHODS, "id", "id+text")


def get_config(arg: str = "lora") -> ConfigDict:
    """The configuration of one model."""
    if arg not in ARGS:
        raise ValueError(unknown_name("model of configs/movielens_100k.py", arg, ARGS))
    config: Any = base.get_config()
    config.inputs = arg if arg in ("id", "id+text") else "text"
    config.peft.method = arg if arg in METHODS else "frozen"
    with config.unlocked():
        if arg == "lora":
            # Every linear layer of the last two blocks: the states below them are computed once a run, not once a step.
            config.peft.options.lora = {"rank": 8, "alpha": 8.0, "dropout": 0.0, "target": "layer_-[12]/.*"}
        if arg == "houlsby":
            config.peft.options.houlsby = {"reduction": 16}
        if arg == "prefix":
            # Texts here have about fifteen tokens.
            config.peft.options.prefix = {"length": 5}

    # A step that tunes the encoder reads the whole catalogue, so it takes as many users as it can.
    tuned = config.peft.method != "frozen"
    train = config.train
    train.steps = 60 if tuned else 480
    train.batch_size = 256 if tuned else 128
    train.learning_rate = 1e-3 if tuned else 3e-3
    train.schedule = "cosine"
    train.warmup = 6 if tuned else 0
    train.eval_every = 6 if tuned else 60
    train.log_every = 2 if tuned else 12
    train.checkpoint_every = 6 if tuned else 60
    config.lock()
    return config


def search(trial: Any) -> dict[str, Any]:
    """Draws the settings of a model over ids for `experiments.search`; `trial` is Optuna's."""
    return {
        "train.learning_rate": trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
        "model.width": trial.suggest_categorical("width", [32, 64, 128]),
        "model.user_options.transformer.layers": trial.suggest_int("layers", 1, 3),
        "model.user_options.transformer.dropout": trial.suggest_float("dropout", 0.0, 0.5, step=0.1),
    }
