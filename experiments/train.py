"""Trains one model and evaluates it.

    python -m experiments.train --config=configs/movielens_100k.py:lora --workdir=runs/lora
    python -m experiments.train --config=configs/movielens_100k.py:id --workdir=runs/id --config.train.steps=600

The last line of standard output is one JSON object with validation and test metrics; the same is in
WORKDIR/result.json. Started again with the same arguments, a run goes on where it was, or prints its result again. On
SIGTERM it saves, prints {"preempted_at_step": STEP} (null before training and after it) and exits with 0; on Ctrl-C it
does the same and exits with 130. A second Ctrl-C ends it at once.
"""

import signal
from typing import NoReturn

from absl import flags
from ml_collections import config_flags

from experiments.cli import command
from experiments.cli.console import to_stderr
from llm4rec_jax.runs.run import run
from llm4rec_jax.training.preemption import Preempted

_PROFILE = flags.DEFINE_bool("profile", False, "Traces five steps, in WORKDIR/profile, for TensorBoard or Perfetto.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py or FILE.py:arg; --config.KEY=VALUE changes a value.")


def main() -> None:
    workdir = command.workdir()
    # While the loop trains it has its own; before and after there is nothing to save.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _preempted)
    try:
        command.answer(run(_CONFIG.value, workdir, command.log, workdir / "profile" if _PROFILE.value else None))
    except Preempted as ended:
        if ended.step is None:
            to_stderr(
                f"{ended.received.name}: stopped outside of training; the same command goes on from what is saved"
            )
        command.answer({"preempted_at_step": ended.step})
        raise


def _preempted(number: int, _: object) -> NoReturn:
    raise Preempted(None, signal.Signals(number))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    command.run(main, several=True)
