"""Settings that were compared on Beauty's validation users, one seed each, for configs/s3rec_beauty.py.

    python -m experiments.sweep --config=configs/s3rec_beauty_tuning.py --workdir=runs/tuning --together=2

A trial's validation stands in its result.json; docs/results/reproductions.md says what was chosen.
"""

from configs import s3rec_beauty
from experiments.sweeps.trials import Trial

get_config = s3rec_beauty.get_config

DROPOUTS, RATES = (0.3, 0.5), (1e-3, 2e-3)


def sweep() -> list[Trial]:
    """Learning rate and dropout of what is trained from nothing."""
    return [
        Trial(
            f"{model}-{dropout}-{rate}",
            model,
            {"model.user_options.transformer.dropout": dropout, "train.learning_rate": rate},
            group=f"{model}-{dropout}-{rate}",
        )
        for model in s3rec_beauty.TRAINED
        for dropout in DROPOUTS
        for rate in RATES
    ]
