"""Searches for hyperparameters on validation, by a configuration's `search(trial)`.

    python -m experiments.search --config=configs/movielens_100k.py:id --workdir=runs/search --trials=20 --workers=2

`search(trial)` takes an Optuna trial and returns overrides, {"train.learning_rate": trial.suggest_float(...)}. Each
trial is a run folder WORKDIR/HASH, with a link WORKDIR/by_name/trial-NUMBER; one whose validation stands below the
median of the others is given up. Called again, the search goes on to --trials in all, and broken-off trials go on too.
WORKDIR/search.json has all trials and the number of configurations tried, which a table should report. See
docs/guides/sweeps.md.
"""

import rich.console
from absl import flags

from experiments.cli import command, launch
from experiments.cli.console import visible
from experiments.sweeps import trials
from experiments.sweeps.progress import Watch
from experiments.sweeps.schedule import Entry, Schedule, drive

_CONFIG = flags.DEFINE_string("config", None, "FILE.py or FILE.py:arg, with a search(trial).", required=True)
_TRIALS = flags.DEFINE_integer("trials", None, "Trials in all.", lower_bound=1, required=True)
_METRIC = flags.DEFINE_string("metric", None, "A validation metric; by default the configuration's train.metric.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the draws; runs have the configuration's seed.", lower_bound=0)
_SPARED = flags.DEFINE_integer("spared", 5, "Trials that finish before any is given up.", lower_bound=0)


def main() -> None:
    launch.leave_devices_alone()
    workdir = command.workdir()
    file, _, arg = _CONFIG.value.partition(":")
    study = trials.load(file)
    if study.search is None:
        raise ValueError(f"{file} has no function search(trial) that returns overrides; see docs/guides/sweeps.md")
    config = trials.configuration(study, arg)
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        from experiments.sweeps.optuna_search import Search
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'llm4rec-jax[sweep]'") from error
    search = Search(
        study,
        arg,
        workdir,
        _METRIC.value or config.train.metric,
        seed=_SEED.value,
        spared=_SPARED.value,
        parallel=launch.WORKERS.value > 1,
    )
    entries: list[Entry] = []
    watch = Watch(rich.console.Console(stderr=True, quiet=command.is_quiet()), entries, launch.WORKERS.value)
    executor = launch.executor(study, workdir)
    before = search.counted()
    watch.log(f"{before} trials tried already, {max(_TRIALS.value - before, 0)} to come")
    try:
        schedule = Schedule(
            executor,
            workers=launch.WORKERS.value,
            timeout=launch.TIMEOUT.value,
            changed=watch.changed,
        )

        def beat() -> None:
            search.beat(schedule, entries, _TRIALS.value)
            watch.beat()

        with watch:
            received = drive(schedule, beat, watch.log)
    finally:
        executor.close()
        search.close()
    search.write()
    best = search.best
    if command.wants_json():
        chosen = best and {"trial": best.number, "value": best.value, "flags": search.flags(best)}
        command.answer({"tried": search.tried(), "metric": search.metric, "best": chosen})
    else:
        print(visible(search.table(), keep="\n"))
        print(f"\n{search.tried()} configurations tried; only validation was looked at.")
        if best is not None:
            shown = visible(search.flags(best))
            print(f"best: trial {best.number}, validation {search.metric} {best.value:.4f}\n    {shown}")
    if received is not None:
        launch.stopped(received, "the same command goes on from there")
    launch.judge(entries)


if __name__ == "__main__":
    command.run(main)
