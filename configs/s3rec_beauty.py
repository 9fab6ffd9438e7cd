"""Amazon Beauty as S³-Rec prepared it: leave-one-out, all 12,101 items ranked, what the user has seen left out.

    python -m experiments.fetch s3rec_beauty --from=FOLDER     # once; see docs/reproductions.md
    python -m experiments.sweep --config=configs/s3rec_beauty.py --workdir=runs/beauty
    python -m experiments.train --config=configs/s3rec_beauty.py:id --workdir=runs/beauty-id

`:arg` is one of popularity, popularity_sorted, popularity_leaked, item_knn, tfidf, id, frozen, lora, houlsby, id+text.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import movielens_100k
from experiments.trials import Trial
from llm4rec_jax.registry import unknown_name

SEEDS = (0, 1, 2)
FITTED: dict[str, tuple[str, dict[str, Any]]] = {
    "popularity": ("popularity", {}),
    "popularity_sorted": ("popularity", {"ties": "first"}),
    # With the counts of validation and test items too, as published.
    "popularity_leaked": ("popularity", {"counts": "all"}),
    "item_knn": ("item_knn", {"k": 100}),
    "tfidf": ("tfidf", {}),
}
TRAINED = ("id", "frozen", "id+text")
TUNED = ("lora", "houlsby")
ARGS = (*FITTED, *TRAINED, *TUNED)

# By configs/s3rec_beauty_tuning.py, on validation.
CHOSEN: dict[str, dict[str, Any]] = {}


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
        config.train.steps, config.train.warmup = 2400, 50
        config.train.eval_every = config.train.checkpoint_every = 150
        config.train.log_every = 50
        if arg in TUNED:
            # A step over the catalogue reads all its texts.
            config.train.steps, config.train.warmup, config.train.learning_rate = 800, 50, 1e-3
            config.train.eval_every = config.train.checkpoint_every = 100
        if arg == "houlsby":
            config.peft.options.houlsby = ConfigDict({"reduction": 16, "target": r"layer_[45]/(attention|ffn)"})
        if arg in FITTED:
            name, options = FITTED[arg]
            config.baseline.name, config.baseline.options = name, ConfigDict(options)
            config.inputs = "text" if arg == "tfidf" else "id"
        config.update_from_flattened_dict(CHOSEN.get(arg, {}))
    return config


def sweep() -> list[Trial]:
    """Closed forms once, the rest with every seed; the encoder is tuned from where the frozen run of the seed ended."""
    once = [Trial(name, name, {}, group=name) for name in FITTED]
    trained = [Trial(f"{name}-{seed}", name, {"seed": seed}, group=name) for name in TRAINED for seed in SEEDS]
    tuned = [
        Trial(f"{name}-{seed}", name, {"seed": seed, "init_from": f"frozen-{seed}"}, group=name)
        for name in TUNED
        for seed in SEEDS
    ]
    return [*once, *trained, *tuned]
