"""Runs the trials of a configuration's `sweep()`, and makes one table of them.

    python -m experiments.sweep --config=configs/peft_movielens.py --workdir=runs/peft

Every trial is a run folder WORKDIR/NAME. Called again, finished trials are kept, interrupted ones go on, and failed
ones, whose output is in WORKDIR/NAME.log, are tried again. The table of all groups of trials is WORKDIR/table.md.
"""

import rich.console
from absl import flags

from experiments import command, report, trials

_CONFIG = flags.DEFINE_string("config", None, "FILE.py with a sweep() that lists trials.", required=True)
_WORKERS = flags.DEFINE_integer("workers", 1, "Trials at a time.", lower_bound=1)
_ONLY = flags.DEFINE_string("only", None, "Groups to run, joined by commas; the table has them only.")


def main() -> None:
    workdir = command.workdir()
    assert _CONFIG.value is not None
    study = trials.load(_CONFIG.value)
    listed = study.trials
    if _ONLY.value is not None:
        wanted = _ONLY.value.split(",")
        groups = {trial.group for trial in listed}
        if unknown := sorted(set(wanted) - groups):
            raise ValueError(f"--only: no trials of {', '.join(unknown)}; there are: {', '.join(sorted(groups))}")
        needed = {trial.after for trial in listed if trial.group in wanted}
        listed = [trial for trial in listed if trial.group in wanted or trial.name in needed]
    workdir.mkdir(parents=True, exist_ok=True)
    console = rich.console.Console(stderr=True)
    failed = trials.run(study, listed, workdir, _WORKERS.value, lambda text: console.print(text, highlight=False))
    groups = dict.fromkeys(trial.group for trial in listed if trial.name not in failed)
    if groups:
        runs = {g: [workdir / t.name for t in listed if t.group == g and t.name not in failed] for g in groups}
        table = report.ablation(runs, study.baseline if study.baseline in runs else None)
        (workdir / "table.md").write_text(table, encoding="utf-8")
        rich.console.Console().print(table, markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise ValueError(f"{len(failed)} trials failed: {', '.join(failed)}; their output is in {workdir}/NAME.log")


if __name__ == "__main__":
    command.run(main)
