"""Trains runs that differ only in seed, learning rate, weight decay or start, in one program.

    python -m experiments.train_together --workdir=runs/rates --runs=a,b,c

Each of the folders in the workdir has the config.json of its run, as a sweep leaves it, which calls this command for
`--together=8`. What is frozen is held once, and what is trained is trained side by side; each run comes to what it
would be alone, up to rounding, in its own folder. Runs that stand at different steps after a break are finished apart.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import train
from experiments.cli import command
from experiments.sweeps import trials
from llm4rec_jax.data.sources import LABELED_SOURCES
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.training.checkpoint import latest_step
from llm4rec_jax.training.loop import train_together
from llm4rec_jax.training.runs import NonFiniteLoss, Run

_RUNS = flags.DEFINE_list("runs", None, "Names of the runs' folders in --workdir, joined by commas.")


def run(workdirs: Sequence[Path], say: Any = print) -> None:
    """Trains and evaluates what has not been yet.

    Raises:
      ValueError: configurations that differ in more than they may, or that train nothing.
      NonFiniteLoss, …: of the first that diverged or could not be evaluated, when the others have ended; those of
        all are printed.
    """
    open_folders = [folder for folder in workdirs if not (folder / "result.json").exists()]
    if not open_folders:
        return
    configs: list[Any] = [run_folder.config_of(folder) for folder in open_folders]
    for folder, config in zip(open_folders, configs, strict=True):
        if trials.shape(config.to_dict()) != trials.shape(configs[0].to_dict()):
            raise ValueError(
                f"{open_folders[0]} and {folder} differ in more than {', '.join(trials.MAY_DIFFER)}: train them apart"
            )
    if configs[0].baseline.name is not None:
        raise ValueError(f"{open_folders[0]} is a baseline in closed form, which is not trained")
    if configs[0].data.source in LABELED_SOURCES:
        raise ValueError(f"{open_folders[0]} answers questions; such runs are trained one by one")
    first = Assembly(configs[0])
    assemblies = [first, *(first.beside(config) for config in configs[1:])]
    say(run_folder.summary(first))
    for folder, assembly in zip(open_folders, assemblies, strict=True):
        run_folder.describe(assembly, folder)
    groups: dict[int | None, list[int]] = {}
    for i, folder in enumerate(open_folders):
        groups.setdefault(latest_step(folder), []).append(i)
    errors: dict[str, Exception] = {}
    for members in groups.values():
        runs = [
            Run(
                assemblies[i].params(),
                assemblies[i].split,
                open_folders[i],
                configs[i].seed,
                configs[i].train.learning_rate,
                configs[i].train.weight_decay,
            )
            for i in members
        ]
        outcomes = train_together(first.model, first.method, runs, **train.options(first))
        for i, outcome in zip(members, outcomes, strict=True):
            name = open_folders[i].name
            if isinstance(outcome, NonFiniteLoss):
                errors[name] = outcome
                continue
            try:
                train.finish(assemblies[i], outcome, open_folders[i], len(members))
            except Exception as error:  # the others are finished first
                errors[name] = error
    for name, error in errors.items():
        # A sweep tells by these lines why which of them has failed.
        print(f"error of {name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    if errors:
        raise next(iter(errors.values()))


def main() -> None:
    workdir = command.workdir()
    folders = [workdir / name for name in _RUNS.value or ()]
    with run_folder.locked(*folders):
        run(folders)


if __name__ == "__main__":
    flags.mark_flag_as_required("runs")
    command.run(main)
