"""Settings that were compared on Scientific's validation users, one seed each, for configs/unisrec_scientific.py.

    python -m experiments.sweep --config=configs/unisrec_scientific_tuning.py --workdir=runs/tuning --together=2

A trial's validation stands in its result.json; docs/results/reproductions.md says what was chosen.
"""

from configs import s3rec_beauty_tuning, unisrec_scientific

get_config = unisrec_scientific.get_config
sweep = s3rec_beauty_tuning.sweep
