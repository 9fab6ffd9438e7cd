"""Encoder rates compared on validation, one seed, for configs/beauty_tuning_pays.py.

python -m experiments.sweep --config=configs/beauty_tuning_pays_tuning.py --workdir=runs/tuning_pays_tuning
"""

from configs import beauty_tuning_pays as study
from experiments.sweeps.trials import Trial

get_config = study.get_config


def sweep() -> list[Trial]:
    """Rows that nothing is compared for but that others start from, then three rates for each tuned row."""
    starts = [study.trial(arg, f"{arg}-0", {}) for arg in ("frozen", "id+text")]
    tuned = [(arg, method) for arg in study.ARGS if (method := study.tuned_by(arg))]
    return starts + [
        study.trial(arg, f"{arg}-{rate:g}", {"train.rates.encoder": rate})
        for arg, method in tuned
        for rate in study.TRIED_RATES[method]
    ]
