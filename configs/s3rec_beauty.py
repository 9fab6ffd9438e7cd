"""Amazon Beauty as S³-Rec prepared it: leave-one-out, all 12,101 items ranked, what the user has seen left out.

    python -m experiments.fetch s3rec_beauty --from=FOLDER     # once; see docs/reproductions.md
    python -m experiments.sweep --config=configs/s3rec_beauty.py --workdir=runs/beauty
    python -m experiments.train --config=configs/s3rec_beauty.py:id --workdir=runs/beauty-id

`:arg` is one of popularity, popularity_sorted, popularity_leaked, item_knn, tfidf, id, frozen, lora, houlsby, id+text.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import movielens_100k
from llm4rec_jax.registry import unknown_name

SEEDS = (0,)
FITTED: dict[str, tuple[str, dict[str, Any]]] = {
    "popularity": ("popularity", {}),
    "popularity_sorted": ("popularity", {"ties": "first"}),
    # With the counts of validation and test items too, as published.
    "popularity_leaked": ("popularity", {"counts": "all"}),
    "item_knn": ("item_knn", {"k": 100}),
    "tfidf": ("tfidf", {}),
}
TUNED = ("lora", "houlsby")
ARGS = (*FITTED, "id", "frozen", *TUNED, "id+text")


def get_config(arg: str = "id") -> ConfigDict:
    """The configuration of one model."""
    if arg not in ARGS:
        raise ValueError(unknown_name("model of configs/s3rec_beauty.py", arg, ARGS))
    kind = "id" if arg in FITTED else arg
    config: Any = movielens_100k.get_config(kind)
    with config.unlocked():
        config.data.source = "s3rec"
        config.data.published = "s3rec_beauty"
        config.data.options = ConfigDict({"no_text": "beauty product"})
        config.data.split_options = ConfigDict({"order": "input"})
        config.text.item = "{text}"
        config.text.title = "text"
        config.text.max_tokens = 16
        # Nine in ten users have fewer than twenty items.
        config.train.history = 20
        config.model.user_options.transformer.positions = 20
        config.model.user_options.transformer.dropout = 0.4
        config.train.batch_size = 256
        config.train.learning_rate, config.train.schedule = 2e-3, "cosine"
        config.train.steps, config.train.warmup = 1200, 50
        config.train.eval_every = config.train.checkpoint_every = 150
        config.train.log_every = 50
        if arg in TUNED:
            # A step over the catalogue would read all its texts: over the batch's own targets, corrected for how often
            # each is one.
            config.loss.name = "in_batch"
            config.train.steps, config.train.warmup, config.train.learning_rate = 120, 10, 1e-3
            config.train.eval_every = config.train.checkpoint_every = 30
            config.train.log_every = 10
        if arg == "houlsby":
            config.peft.options.houlsby = ConfigDict({"reduction": 16, "target": r"layer_[45]/(attention|ffn)"})
        if arg in FITTED:
            name, options = FITTED[arg]
            config.baseline.name, config.baseline.options = name, ConfigDict(options)
            config.inputs = "text" if arg == "tfidf" else "id"
    return config
