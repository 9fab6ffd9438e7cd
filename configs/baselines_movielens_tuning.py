"""Settings of the trained baselines that were compared on MovieLens-100k's validation users, one seed each.

    python -m experiments.sweep --config=configs/baselines_movielens_tuning.py --workdir=runs/tuning --together=3

A trial's validation stands in its result.json; configs/baselines_movielens.py has what was chosen.
"""

from typing import Any

from configs import baselines_movielens
from experiments.sweeps.trials import Trial

get_config = baselines_movielens.get_config

RATES = (1e-3, 3e-3, 1e-2)
# One more setting of each, in addition to the learning rate.
OTHERS: dict[str, list[dict[str, Any]]] = {
    "bpr_mf": [{"train.weight_decay": decay} for decay in (1e-3, 1e-1)],
    "sasrec": [{"model.user_options.transformer.dropout": dropout} for dropout in (0.2, 0.5)],
    "two_tower": [{"model.user_options.two_tower.dropout": dropout} for dropout in (0.2, 0.5)],
    "bert4rec": [{"model.user_options.bert4rec.mask_prob": share} for share in (0.2, 0.4)],
    "gru4rec": [{"model.user_options.gru.dropout": dropout} for dropout in (0.2, 0.5)],
    "lightgcn": [{"model.user_options.lightgcn.layers": layers} for layers in (1, 2, 3)],
}


def sweep() -> list[Trial]:
    """Learning rates and one other setting."""
    trials = []
    for model, others in OTHERS.items():
        for other in others:
            (value,) = other.values()
            for rate in RATES:
                name = f"{model}-{value}-{rate}"
                trials.append(Trial(name, model, {**other, "train.learning_rate": rate}, group=name))
    return trials
