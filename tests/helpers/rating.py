"""A rating task of a made taste: six users like one of two colours, and a frozen encoder sees colours."""

from typing import Any

import jax
import numpy as np
import polars as pl

from llm4rec_jax import peft
from llm4rec_jax.data.labeled import LabeledData, LabeledExamples
from llm4rec_jax.models.rating import RATING_HEADS
from llm4rec_jax.tasks import rating_scoring
from llm4rec_jax.tasks.rating import RatingTask
from llm4rec_jax.tasks.rating_scoring import Reader
from llm4rec_jax.training.config import TrainConfig
from tests.helpers import tiny

H = 4
TITLES = [f"{colour} {thing}" for colour in tiny.COLOURS[:2] for thing in tiny.THINGS]


def asked(n: int, seed: int) -> LabeledExamples:
    """Every user likes one of two colours: of each question half the history is liked, and says which."""
    rng = np.random.default_rng(seed)
    items = np.stack([np.concatenate([rng.choice(10, 2, False), 10 + rng.choice(10, 2, False)]) for _ in range(n)])
    items, target, colour = rng.permuted(items, axis=1).astype(np.int32), rng.integers(0, 20, n), rng.integers(0, 2, n)
    liked, mask = items // 10 == colour[:, None], np.ones((n, H), bool)
    user = rng.integers(0, 6, n).astype(np.int32)
    return LabeledExamples(
        user, items, liked, mask, target.astype(np.int32), (target // 10 == colour).astype(np.float32)
    )


DATA = LabeledData(
    "colours",
    pl.DataFrame({"item_id": TITLES}),
    pl.DataFrame({"user_id": [f"u{i}" for i in range(6)]}),
    asked(48, 0), asked(60, 1), asked(60, 2), "made",
)  # fmt: skip
COLOUR = np.repeat([[1.0, 0.0], [-1.0, 0.0]], 10, axis=0)
VECTORS = (np.column_stack([COLOUR, np.zeros((20, 4))]) + np.random.default_rng(3).normal(0, 0.5, (20, 6))).astype("f4")
PROMPTS = {"train": np.arange(48), "validation": np.arange(60), "test": np.arange(60)}


def frozen_reader() -> Reader:
    nothing: Any = None
    return Reader(nothing, peft.create("frozen"), nothing, False, VECTORS, VECTORS.mean(0))


def task_of(**options: Any) -> tuple[RatingTask, TrainConfig]:
    head = RATING_HEADS.build("hierarchical")
    params = {"answers": rating_scoring.start(head, 6, jax.random.key(0))}
    options = {"steps": 40, "batch_size": 16, "learning_rate": 0.1, "eval_every": 10, "metric": "auc", **options}
    config = TrainConfig(**options)
    return RatingTask(head, frozen_reader(), params, DATA, PROMPTS, config), config
