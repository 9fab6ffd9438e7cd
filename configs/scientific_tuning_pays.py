"""The rows of configs/beauty_tuning_pays.py on Amazon Scientific as UniSRec split it.

python -m experiments.sweep --config=configs/scientific_tuning_pays.py --workdir=runs/scientific_tuning_pays
"""

from ml_collections import ConfigDict

from configs import beauty_tuning_pays, unisrec_scientific
from experiments.reports.spec import Table

sweep = beauty_tuning_pays.sweep


def get_config(arg: str = "lora") -> ConfigDict:
    """The configuration of one row."""
    return beauty_tuning_pays.get_config(arg, unisrec_scientific.get_config)


def table() -> Table:
    """Returns the table of Beauty with the runs of this data."""
    return beauty_tuning_pays.table()._replace(
        caption="Amazon Scientific as UniSRec split it: frozen and tuned texts.", label="scientific-tuning-pays"
    )
