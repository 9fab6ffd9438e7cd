"""Trains one model and evaluates it.

    python -m experiments.train --config=configs/movielens_100k.py:lora --workdir=runs/lora
    python -m experiments.train --config=configs/movielens_100k.py:id --workdir=runs/id --config.train.steps=600

The last line of standard output is one JSON object with validation and test metrics; the same is in
WORKDIR/result.json. Started again with the same arguments, a run goes on where it was, or prints its result again. On
SIGTERM it saves, prints {"preempted_at_step": STEP} (null before training and after it) and exits with 0.
"""

import signal
from typing import NoReturn

import jax
from absl import flags
from ml_collections import config_flags

from experiments.cli import command
from llm4rec_jax.runs.run import run
from llm4rec_jax.training.preemption import Preempted

_PROFILE = flags.DEFINE_bool("profile", False, "Traces five steps, in WORKDIR/profile, for TensorBoard or Perfetto.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py or FILE.py:arg; --config.KEY=VALUE changes a value.")


def main() -> None:
    workdir = command.workdir()
    # While the loop trains it has its own; before and after there is nothing to save.
    signal.signal(signal.SIGTERM, _preempted)
    try:
        log = print if jax.process_index() == 0 else lambda text: None
        command.answer(run(_CONFIG.value, workdir, log, workdir / "profile" if _PROFILE.value else None))
    except Preempted as ended:
        command.answer({"preempted_at_step": ended.step})
        raise


def _preempted(*_: object) -> NoReturn:
    raise Preempted(None)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    command.run(main, several=True)
