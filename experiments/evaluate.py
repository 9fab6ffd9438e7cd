"""Evaluates the best checkpoint of a run again: the same numbers as training printed.

    python -m experiments.evaluate --workdir=runs/lora [--check]

The last line of standard output is one JSON object with validation and test metrics. --check ranks once more with the
items in another order, and fails where a single rank or tie is another.
"""

from absl import flags

from experiments.cli import command
from llm4rec_jax.evaluation.evaluate import check_order
from llm4rec_jax.runs import folder
from llm4rec_jax.runs.load import evaluate_again, restore_scorer
from llm4rec_jax.runs.results import PHASES

_CHECK = flags.DEFINE_bool("check", False, "Rank once more with the items in another order.")


def main() -> None:
    workdir = command.workdir()
    with folder.locked(workdir):
        metrics = evaluate_again(workdir)
        if _CHECK.value:
            assembly, scorer = restore_scorer(workdir)
            for phase in PHASES:
                check_order(scorer, assembly.split, phase, mesh=assembly.mesh)
        command.answer(metrics)


if __name__ == "__main__":
    command.run(main, several=True)
