"""Amazon Beauty as S³-Rec prepared it: leave-one-out, all 12,101 items ranked, what the user has seen left out.

    python -m llm4rec_jax.data.download s3rec_beauty --from=FOLDER     # once; see docs/results/reproductions.md
    python -m experiments.sweep --config=configs/s3rec_beauty.py --workdir=runs/beauty
    python -m experiments.train --config=configs/s3rec_beauty.py:id --workdir=runs/beauty-id

`:arg` is one of popularity, popularity_sorted, popularity_leaked, item_knn, tfidf, id, frozen, lora, houlsby, id+text.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import movielens_100k
from experiments.reports.spec import Table
from experiments.sweeps.trials import Trial
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
TRAINED = ("id", "frozen", "id+text")
TUNED = ("lora", "houlsby")
ARGS = (*FITTED, *TRAINED, *TUNED)

ROWS: tuple[dict[str, str], ...] = (
    {
        "popularity": "popularity",
        "popularity_sorted": "… ties by the order of items",
        "popularity_leaked": "… counts of everything (a leak)",
        "item_knn": "item neighbours",
        "tfidf": "TF-IDF",
        "id": "SASRec (ids)",
    },
    {"frozen": "text, frozen", "lora": "text, LoRA", "houlsby": "text, Houlsby", "id+text": "ids + text, frozen"},
)
# Settings compared on validation: configs/s3rec_beauty_tuning.py.
TRIED = {**dict.fromkeys(FITTED, 1), **dict.fromkeys(TRAINED, 4), **dict.fromkeys(TUNED, 1)}
_SOURCE = "Zhou et al. 2020 (S³-Rec)"
PUBLISHED = [
    ("PopRec", {"hr@10": 0.0152, "ndcg@10": 0.0068}, _SOURCE),
    ("GRU4Rec", {"hr@10": 0.0283, "ndcg@10": 0.0137}, _SOURCE),
    ("BERT4Rec", {"hr@10": 0.0347, "ndcg@10": 0.0170}, _SOURCE),
    ("SASRec", {"hr@10": 0.0605, "ndcg@10": 0.0318}, _SOURCE),
    ("S³-Rec", {"hr@10": 0.0647, "ndcg@10": 0.0327}, _SOURCE),
]


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
        config.model.user_options.transformer.dropout = 0.3
        config.train.batch_size = 256
        config.train.learning_rate, config.train.schedule = 2e-3, "cosine"
        config.train.steps, config.train.warmup = 2400, 50
        config.train.eval_every = config.train.checkpoint_every = 300
        config.train.log_every = 50
        if arg in TUNED:
            # A step over the catalogue reads all its texts.
            config.train.steps, config.train.warmup, config.train.learning_rate = 400, 50, 1e-3
            config.train.eval_every = config.train.checkpoint_every = 100
        if arg == "houlsby":
            config.peft.options.houlsby = ConfigDict({"reduction": 16, "target": "layer_-[12]/(attention|ffn)"})
        if arg in FITTED:
            name, options = FITTED[arg]
            config.baseline.name, config.baseline.options = name, ConfigDict(options)
            config.inputs = "text" if arg == "tfidf" else "id"
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


def table() -> Table:
    """Against ids; what others printed below."""
    return Table(
        rows=ROWS,
        metrics=("hr@10", "ndcg@10"),
        costs=("parameters", "delta", "step", "gflop", "time"),
        tried=TRIED,
        baseline="id",
        published=PUBLISHED,
        caption="Amazon Beauty as S³-Rec prepared it.",
        label="s3rec-beauty",
    )
