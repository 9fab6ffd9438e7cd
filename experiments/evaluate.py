"""Evaluates the best checkpoint of a run again: the same numbers as training printed.

    python -m experiments.evaluate --workdir=runs/lora [--check]

The last line of standard output is one JSON object with validation and test metrics. --check ranks once more with the
items in another order, and fails where a single rank or tie is another.
"""

from absl import flags

from experiments.cli import command
from llm4rec_jax.evaluation.evaluate import check_order
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs import rating_runs
from llm4rec_jax.runs.results import evaluate_run, restored_scorer

_CHECK = flags.DEFINE_bool("check", False, "Rank once more with the items in another order.")


def main() -> None:
    workdir = command.workdir()
    config = run_folder.config_of(workdir)
    with run_folder.locked(workdir):
        if rating_runs.takes(config):
            if _CHECK.value:
                raise ValueError(f"{workdir} answers questions and ranks no catalogue: it has no order to --check")
            command.answer(rating_runs.evaluate_again(workdir))
            return
        assembly, scorer = restored_scorer(workdir)
        found = evaluate_run(assembly, scorer, workdir)
        if _CHECK.value:
            check_order(scorer, assembly.split, "validation", mesh=assembly.mesh)
            check_order(scorer, assembly.split, "test", mesh=assembly.mesh)
        command.answer(found)


if __name__ == "__main__":
    command.run(main, several=True)
