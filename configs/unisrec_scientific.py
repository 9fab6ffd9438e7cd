"""Amazon Scientific with UniSRec's own split: leave-one-out, all 4,385 items ranked.

    python -m experiments.fetch unisrec_scientific --from=FOLDER     # once; see experiments/fetch.py
    python -m experiments.train --config=configs/unisrec_scientific.py:frozen --workdir=runs/scientific-frozen

`:arg` is one of those of configs/s3rec_beauty.py, which this differs from in data and texts.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import s3rec_beauty


def get_config(arg: str = "id") -> ConfigDict:
    """The configuration of one model."""
    config: Any = s3rec_beauty.get_config(arg)
    with config.unlocked():
        config.data.source = "unisrec"
        config.data.published = "unisrec_scientific"
        config.data.options, config.data.split_options = ConfigDict(), ConfigDict()
        # About 26 words an item.
        config.text.max_tokens = 48
        if arg in s3rec_beauty.TUNED:
            config.train.batch_size = 128
        else:
            config.train.steps, config.train.eval_every = 600, 75
            config.train.checkpoint_every = 75
    return config
