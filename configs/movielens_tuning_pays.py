"""The rows of configs/beauty_tuning_pays.py on MovieLens-100k.

python -m experiments.sweep --config=configs/movielens_tuning_pays.py --workdir=runs/movielens_tuning_pays
"""

from ml_collections import ConfigDict

from configs import beauty_tuning_pays, movielens_100k
from experiments.reports.spec import Table

sweep = beauty_tuning_pays.sweep


def get_config(arg: str = "lora") -> ConfigDict:
    """The configuration of one row."""
    return beauty_tuning_pays.get_config(arg, movielens_100k.get_config)


def table() -> Table:
    """Returns the table of Beauty with the runs of this data."""
    return beauty_tuning_pays.table()._replace(
        caption="MovieLens-100k: frozen and tuned texts.", label="movielens-tuning-pays"
    )
