"""Evaluates the best checkpoint of a run again: the same numbers as training printed.

    python -m experiments.evaluate --workdir=runs/lora

The last line of standard output is one JSON object with validation and test metrics.
"""

from experiments import command, pointwise_runs, run_folder
from experiments.results import evaluate_run, restored_scorer


def main() -> None:
    workdir = command.workdir()
    config = run_folder.config_of(workdir)
    with run_folder.locked(workdir):
        if pointwise_runs.takes(config):
            command.answer(pointwise_runs.evaluate_again(workdir))
        else:
            command.answer(evaluate_run(*restored_scorer(workdir), workdir))


if __name__ == "__main__":
    command.run(main, several=True)
