"""Runs the trials of a configuration's `sweep()`, and makes one table of them.

    python -m experiments.sweep --config=configs/peft_movielens.py --workdir=runs/peft --workers=2
    python -m experiments.sweep --config=configs/peft_movielens.py --workdir=runs/peft --executor=ray
    python -m experiments.sweep --config=configs/peft_movielens.py --workdir=runs/peft --together=3

With --distributed, or --coordinator and what goes with it, all processes of the sweep work on the same trial, one after
another. See docs/guides/scaling.md.

Every trial is a run folder WORKDIR/HASH, named by its configuration; WORKDIR/by_name/NAME is a link to it, and
WORKDIR/sweep.json says how each stands. Called again, finished trials are kept, interrupted ones go on, and failed
ones, of which HASH/failure.txt tells, are tried again. The table is WORKDIR/table.md. See docs/guides/sweeps.md.
"""

from collections.abc import Sequence
from pathlib import Path

import rich.console
from absl import flags

from experiments import tables
from experiments.cli import command, distributed, launch
from experiments.sweeps import trials
from experiments.sweeps.progress import Watch
from experiments.sweeps.schedule import Entry, Schedule, drive
from experiments.sweeps.trials import Study, TrialRun
from llm4rec_jax.io import write_text
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs.locks import Lock

_CONFIG = flags.DEFINE_string("config", None, "FILE.py with a sweep() that lists trials.", required=True)
_ONLY = flags.DEFINE_string("only", None, "Groups to run, joined by commas, with what they start from.")
_TOGETHER = flags.DEFINE_integer(
    "together", 1, "Trials at most that one program trains, where they differ only in seeds and rates.", lower_bound=1
)


def main() -> None:
    launch.leave_devices_alone()
    index, processes = distributed.index_and_count()
    if processes > 1:
        launch.check_several(_TOGETHER.value)
    workdir = command.workdir()
    study = trials.swept(trials.load(_CONFIG.value))
    runs = trials.plan(study, workdir)
    chosen = runs if _ONLY.value is None else trials.select(runs, _ONLY.value.split(","))
    entries: list[Entry] = []
    watch = Watch(rich.console.Console(stderr=True, quiet=command.is_quiet()), entries, launch.WORKERS.value)
    held = Lock(workdir) if index == 0 else None
    executor = launch.executor(study, workdir)
    if processes > 1:
        executor = launch.joined(executor, index)
    try:

        def changed(entry: Entry) -> None:
            if index == 0:
                write_state(workdir, study, runs, entries)
                watch.changed(entry)

        schedule = Schedule(
            executor,
            workers=launch.WORKERS.value,
            timeout=launch.TIMEOUT.value,
            changed=changed,
            records=index == 0,
        )
        for batch in trials.batches(chosen, _TOGETHER.value):
            if len(batch) == 1:
                entries.extend(schedule.add(batch))
            else:
                entries.extend(schedule.add(batch, trials.joint_command(batch)))
        if index == 0:
            write_state(workdir, study, runs, entries)
            watch.log(f"{len(entries)} trials, {sum(e.status == 'finished' for e in entries)} of them finished")
        with watch:
            received = drive(schedule, watch.beat if index == 0 else lambda: None, watch.log)
    finally:
        executor.close()
        if held is not None:
            held.close()
    if received is not None:
        launch.stopped(received, "the same command goes on from there")
    problem = None
    if index == 0 and any(run.finished for run in runs):
        try:
            table = tables.of_sweep(workdir, Path(study.file))
            write_text(workdir / "table.md", table)
            if not command.wants_json():
                rich.console.Console().print(table, markup=False, highlight=False, soft_wrap=True)
        except ValueError as error:
            # The outcome of the trials is printed first.
            problem = error
            watch.log(f"no table: {error}")
    if index == 0 and command.wants_json():
        command.answer({"workdir": str(workdir), **run_folder.read(workdir / "sweep.json")})
    launch.judge(entries)
    if problem is not None:
        raise problem


def write_state(workdir: Path, study: Study, runs: Sequence[TrialRun], entries: Sequence[Entry]) -> None:
    """Writes WORKDIR/sweep.json: the configuration file, and of each trial folder, name, group, status and error."""
    known = {entry.run.folder: entry for entry in entries}
    listed = []
    for run in runs:
        entry = known.get(run.folder) or Entry(run, _status(run))
        listed.append(
            {
                "folder": run.folder.name,
                "name": run.trial.name,
                "group": run.trial.group,
                "status": entry.status,
                "error": entry.error,
            }
        )
    run_folder.write(workdir / "sweep.json", {"config": study.file, "trials": listed})


def _status(run: TrialRun) -> str:
    """The status of a run that nobody works on now, from what is in its folder."""
    if run.finished:
        return "finished"
    if (run.folder / "failure.txt").exists():
        return "failed"
    return "interrupted" if (run.folder / "metrics.jsonl").exists() else "waiting"


if __name__ == "__main__":
    command.run(main, several=True, joins=False)
