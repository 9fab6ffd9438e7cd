"""Evaluates the best checkpoint of a run again: the same numbers as training printed.

    python -m experiments.evaluate --workdir=runs/lora

The last line of standard output is one JSON object with validation and test metrics.
"""

import json
from pathlib import Path

from absl import flags

from experiments import command
from experiments.results import evaluate_run, restored_scorer

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run that has been trained.")


def main() -> None:
    workdir = Path(_WORKDIR.value)
    print(json.dumps(evaluate_run(*restored_scorer(workdir), workdir)))


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    command.run(main)
