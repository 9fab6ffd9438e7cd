"""Trains runs that differ only in seed, learning rate, weight decay or start, in one program.

    python -m experiments.train_together --workdir=runs/rates --runs=a,b,c

Each of the folders in the workdir holds the config.json of its run, as a sweep leaves it, which calls this command for
`--together=8`. The frozen parameters are held once, and the runs are trained side by side; each ends as it would alone,
up to rounding, in its own folder. Runs that stand at different steps after a break are finished apart.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.cli import command
from experiments.sweeps import trials
from llm4rec_jax.runs import folder
from llm4rec_jax.runs.checks import check_training
from llm4rec_jax.runs.run import assemble, finish
from llm4rec_jax.training.checkpoint import latest_step
from llm4rec_jax.training.population import train_together
from llm4rec_jax.training.task import NonFiniteLoss

_RUNS = flags.DEFINE_list("runs", None, "Names of the runs' folders in --workdir, joined by commas.")


def run(workdirs: Sequence[Path], log: Callable[[str], None] = print) -> None:
    """Trains and evaluates the runs that have no result yet.

    Raises:
      ValueError: The configurations differ in more than they may, or train nothing.
      NonFiniteLoss: The first error of a run that diverged or could not be evaluated, once the others have ended. The
        errors of all are printed.
    """
    open_folders = [workdir for workdir in workdirs if not (workdir / "result.json").exists()]
    if not open_folders:
        return
    configs: list[Any] = [folder.config_of(workdir) for workdir in open_folders]
    for workdir, config in zip(open_folders, configs, strict=True):
        if trials.shape(config.to_dict()) != trials.shape(configs[0].to_dict()):
            raise ValueError(
                f"{open_folders[0]} and {workdir} differ in more than {', '.join(trials.MAY_DIFFER)}: train them apart"
            )
    if configs[0].baseline.name is not None:
        raise ValueError(f"{open_folders[0]} is a baseline in closed form, which is not trained")
    first = assemble(configs[0])
    check_training(first)
    assemblies = [first, *(first.beside(config) for config in configs[1:])]
    log(first.summary())
    for workdir, assembly in zip(open_folders, assemblies, strict=True):
        folder.describe(assembly, workdir)
    groups: dict[int | None, list[int]] = {}
    for i, workdir in enumerate(open_folders):
        groups.setdefault(latest_step(workdir), []).append(i)
    errors: dict[str, Exception] = {}
    for members in groups.values():
        outcomes = train_together(
            [assemblies[i].task for i in members],
            [assemblies[i].train_config for i in members],
            [open_folders[i] for i in members],
            mesh=first.mesh,
            rules=first.rules,
        )
        for i, outcome in zip(members, outcomes, strict=True):
            name = open_folders[i].name
            if isinstance(outcome, NonFiniteLoss):
                errors[name] = outcome
                continue
            try:
                finish(assemblies[i], outcome, open_folders[i], together=len(members))
            except Exception as error:  # the others are finished first
                errors[name] = error
    for name, error in errors.items():
        # A sweep finds here which of its runs failed, and why.
        print(f"error of {name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    if errors:
        raise next(iter(errors.values()))


def main() -> None:
    workdir = command.workdir()
    folders = [workdir / name for name in _RUNS.value or ()]
    with folder.locked(*folders):
        run(folders)


if __name__ == "__main__":
    flags.mark_flag_as_required("runs")
    command.run(main)
