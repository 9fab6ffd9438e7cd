"""One line about the study: whose behaviour, over which items, and what is compared.

    llm4rec train --config=NAME.py:id --workdir=runs/NAME-id          # item ids alone: minutes
    llm4rec train --config=NAME.py:frozen --workdir=runs/NAME-frozen  # texts, by a frozen language model
    llm4rec train --config=NAME.py:lora --workdir=runs/NAME-lora      # texts, by a tuned one
    llm4rec sweep --config=NAME.py --workdir=runs/NAME                # all of them, and a table

In a clone, `python -m experiments.train` and `python -m experiments.sweep` are the same programs. The command line can
change any value: --config.train.steps=600. Keys, types and meanings: docs/reference/config.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base
from experiments.sweeps.trials import Trial
from llm4rec_jax.registry import unknown_name

MODELS = ("id", "frozen", "lora")


def get_config(arg: str = "lora") -> ConfigDict:
    """Returns the configuration of one model: `--config=NAME.py:lora`."""
    if arg not in MODELS:
        raise ValueError(unknown_name("model", arg, MODELS))
    config: Any = base.get_config()
    with config.unlocked():
        # The data: one interaction a row, and one item a row. CSV, TSV, Parquet or JSON lines, by the file's ending.
        config.data.source = "table"
        config.data.path = "interactions.csv"
        config.data.options = ConfigDict(
            {
                "user": "user_id",
                "item": "item_id",
                "timestamp": "timestamp",  # without times: None, and config.data.split_options below
                "items_path": "items.csv",
                # Columns of the items' table by the names that the template of a text calls them by.
                "item_columns": {"title": "title", "category": "category"},
            }
        )
        # config.data.split_options = ConfigDict({"order": "input"})  # rows are in order, and have no times
        config.data.k_core = 5  # every user and item has five interactions or more

        # The text of an item. The brackets of an empty field vanish with it.
        config.text.item = "{title} ({category})"
        config.text.title = "title"

        # The model: how an item is represented, the language model, and how that is tuned.
        config.inputs = "id" if arg == "id" else "text"
        # config.encoder.path = "BAAI/bge-small-en-v1.5"  # a folder, or a hub name; by default MiniLM
        config.peft.method = "lora" if arg == "lora" else "frozen"
        if arg == "lora":
            # Every linear layer of the last block: the states below it are computed once a run, not once a step.
            config.peft.options.lora = {"rank": 8, "alpha": 8.0, "dropout": 0.0, "target": "layer_-1/.*"}

    # "in_batch" compares with the other items of a batch. "full_softmax" compares with all items at every step, which
    # suits some thousands of them, or more where their vectors are frozen.
    config.loss.name = "in_batch" if arg == "lora" else "full_softmax"

    # Training: the best validation state is kept, and tested at the end.
    train = config.train
    train.steps = 400
    train.batch_size = 128
    train.learning_rate = 1e-3 if arg == "lora" else 3e-3
    train.schedule = "cosine"
    train.warmup = 0
    train.eval_every = train.checkpoint_every = 50
    train.log_every = 10
    train.metric = "ndcg@10"
    return config.lock()


def sweep() -> list[Trial]:
    """Lists the trials of `llm4rec sweep`: each model with three seeds. A group is a row of the table."""
    return [Trial(f"{model}-{seed}", model, {"seed": seed}, model) for model in MODELS for seed in range(3)]


# The table says how each row differs from this one, with tests of significance.
BASELINE = "id"
