"""Amazon Beauty by generation of semantic ids, beside SASRec: S³-Rec's 12,101 items, leave-one-out, all items ranked.

    python -m experiments.encode --config=configs/s3rec_beauty.py:frozen --out=beauty.npy
    python -m experiments.semantic_ids --vectors=beauty.npy --out=beauty.index.json
    python -m experiments.train --config=configs/generation_beauty.py:tiger --workdir=runs/tiger
    python -m experiments.sweep --config=configs/generation_beauty.py --workdir=runs/generation

`:arg` is one of id (SASRec), tiger, decoder, tiger_letter, decoder_letter. The last two read the ids that LETTER
published, `data/Beauty/Beauty.index.json` of its repository; --config.generation.ids=PATH tells where a file lies.
docs/guides/llm_recommenders.md describes the models.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import s3rec_beauty
from experiments.reports.spec import Table
from experiments.sweeps.trials import Trial
from llm4rec_jax.registry import unknown_name

GENERATED = ("tiger", "decoder", "tiger_letter", "decoder_letter")
ARGS = ("id", *GENERATED)
SEEDS = (0,)

ROWS: tuple[dict[str, str], ...] = (
    {"id": "SASRec (ids)"},
    {"tiger": "TIGER, residual k-means", "decoder": "decoder only, residual k-means"},
    {"tiger_letter": "TIGER, LETTER's ids", "decoder_letter": "decoder only, LETTER's ids"},
)
PUBLISHED = [
    ("SASRec", {"hr@10": 0.0605, "ndcg@10": 0.0318}, "Zhou et al. 2020 (S³-Rec)"),
    ("TIGER", {"hr@10": 0.0648, "ndcg@10": 0.0384}, "Rajput et al. 2023"),
]


def get_config(arg: str = "tiger") -> ConfigDict:
    """The configuration of one model."""
    if arg not in ARGS:
        raise ValueError(unknown_name("model of configs/generation_beauty.py", arg, ARGS))
    config: Any = s3rec_beauty.get_config("id")
    if arg == "id":
        return config
    model, _, published = arg.partition("_")
    config.generation.model = model
    # LETTER counts items from 0, S³-Rec from 1.
    config.generation.ids = "Beauty.index.json" if published else "beauty.index.json"
    config.generation.shift = 1 if published else None
    train = config.train
    train.learning_rate, train.schedule, train.warmup = 1e-3, "cosine", 500
    train.weight_decay = 0.01
    # One example is a target with what came before it, or for the decoder a window with all of its targets.
    train.steps, train.batch_size = (20_000, 256) if model == "tiger" else (6_000, 128)
    train.eval_every = train.checkpoint_every = train.steps // 10
    return config


def sweep() -> list[Trial]:
    """Every model with every seed."""
    return [Trial(f"{name}-{seed}", name, {"seed": seed}, group=name) for name in ARGS for seed in SEEDS]


def table() -> Table:
    """Against SASRec; what others printed below."""
    return Table(
        rows=ROWS,
        metrics=("hr@10", "ndcg@10"),
        costs=("parameters", "step", "time"),
        tried=dict.fromkeys(ARGS, 1),
        baseline="id",
        published=PUBLISHED,
        caption="Amazon Beauty as S³-Rec prepared it. A target outside of the 20 beams of a generator is missed.",
        label="generation-beauty",
    )
