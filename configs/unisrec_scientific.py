"""Amazon Scientific with UniSRec's own split: leave-one-out, all 4,385 items ranked.

    python -m llm4rec_jax.data.download unisrec_scientific --from=FOLDER     # once; see llm4rec_jax/data/download.py
    python -m experiments.train --config=configs/unisrec_scientific.py:frozen --workdir=runs/scientific-frozen

`:arg` is one of those of configs/s3rec_beauty.py, which this differs from in data and texts.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import s3rec_beauty
from experiments.reports.spec import Table

# By configs/unisrec_scientific_tuning.py, on validation.
CHOSEN: dict[str, dict[str, Any]] = {"id+text": {"train.learning_rate": 1e-3}}

sweep = s3rec_beauty.sweep

# Recalled, not read: the authors' figures for Recall@10, which with one target a user is HR@10.
_SOURCE = "UniSRec's authors, from memory, unverified"
PUBLISHED = [
    ("SASRec (unverified)", {"hr@10": 0.108}, _SOURCE),
    ("UniSRec (unverified), from", {"hr@10": 0.119}, _SOURCE),
    ("UniSRec (unverified), to", {"hr@10": 0.124}, _SOURCE),
]


def get_config(arg: str = "id") -> ConfigDict:
    """The configuration of one model."""
    config: Any = s3rec_beauty.get_config(arg)
    with config.unlocked():
        config.data.source = "unisrec"
        config.data.published = "unisrec_scientific"
        config.data.options, config.data.split_options = ConfigDict(), ConfigDict()
        # About 26 words an item.
        config.text.max_tokens = 48
        if arg not in s3rec_beauty.TUNED:
            config.train.steps = 1200
            config.train.eval_every = config.train.checkpoint_every = 150
        config.update_from_flattened_dict(CHOSEN.get(arg, {}))
    return config


def table() -> Table:
    """Returns the table of Beauty with the published figures of Scientific."""
    return s3rec_beauty.table()._replace(
        published=PUBLISHED, caption="Amazon Scientific as UniSRec split it.", label="unisrec-scientific"
    )
