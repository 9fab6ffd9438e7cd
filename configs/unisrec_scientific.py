"""Amazon Scientific with UniSRec's own split: leave-one-out, all 4,385 items ranked.

    python -m experiments.fetch unisrec_scientific --from=FOLDER     # once; see experiments/fetch.py
    python -m experiments.train --config=configs/unisrec_scientific.py:frozen --workdir=runs/scientific-frozen

`:arg` is one of those of configs/s3rec_beauty.py, which this differs from in data and texts.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import s3rec_beauty

# By configs/unisrec_scientific_tuning.py, on validation.
CHOSEN: dict[str, dict[str, Any]] = {}

sweep = s3rec_beauty.sweep


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
            config.train.eval_every = config.train.checkpoint_every = 100
        config.update_from_flattened_dict(CHOSEN.get(arg, {}))
    return config
