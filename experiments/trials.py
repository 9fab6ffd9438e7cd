"""Trials: runs that a configuration file lists, each a folder, started as processes of their own."""

import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import run_folder


class Trial(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: its folder's.
      arg: what follows the colon of `--config=FILE.py:arg`.
      overrides: configuration keys with their values, {"train.steps": 10}; `init_from` is relative to the workdir.
      group: trials that differ only in their seed; a row of the table.
      after: the name of a trial that must have finished.
    """

    name: str
    arg: str
    overrides: Mapping[str, Any]
    group: str
    after: str | None = None


class Study(NamedTuple):
    """A configuration file that lists trials.

    Attributes:
      file: its path.
      get_config: gives the configuration of `FILE.py:arg`.
      trials: what its `sweep()` lists.
      baseline: its BASELINE, the group that the table compares the others with; None without one.
    """

    file: str
    get_config: Callable[[str], Any]
    trials: list[Trial]
    baseline: str | None


def load(file: str) -> Study:
    """The study of a configuration file.

    Raises:
      ValueError: no such file, no `sweep` in it, names that are used twice or not at all, or a baseline without trials.
    """
    if not Path(file).is_file():
        raise ValueError(f"--config: {file} does not exist")
    module = runpy.run_path(file)
    if "sweep" not in module:
        raise ValueError(f"{file} has no function sweep() that lists trials; train it by experiments.train")
    trials = module["sweep"]()
    names = [trial.name for trial in trials]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{file}: sweep() names two trials {', '.join(twice)}")
    if lost := sorted({t.after for t in trials if t.after is not None and t.after not in names}):
        raise ValueError(f"{file}: trials come after {', '.join(lost)}, which sweep() does not list")
    baseline = module.get("BASELINE")
    if baseline is not None and baseline not in {trial.group for trial in trials}:
        raise ValueError(f"{file}: BASELINE is {baseline!r}, and sweep() lists no trials of that group")
    return Study(file, module["get_config"], trials, baseline)


def _overrides(trial: Trial, workdir: Path) -> dict[str, Any]:
    overrides = dict(trial.overrides)
    if "init_from" in overrides:
        overrides["init_from"] = str(workdir / overrides["init_from"])
    return overrides


def _open(study: Study, trials: Sequence[Trial], workdir: Path) -> None:
    """Every trial's folder with its configuration, before any is run; one that was run with another is an error."""
    for trial in trials:
        config = study.get_config(trial.arg)
        try:
            config.update_from_flattened_dict(_overrides(trial, workdir))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{study.file}: the trial {trial.name} cannot be configured: {error}") from error
        run_folder.open_for(config, workdir / trial.name)


def _start(study: Study, trial: Trial, workdir: Path) -> subprocess.Popen[bytes]:
    arguments = [f"--config.{key}={value}" for key, value in _overrides(trial, workdir).items()]
    # Trials of a group compile the same programs.
    environment = {"JAX_COMPILATION_CACHE_DIR": str(workdir / "compiled"), **os.environ}
    with (workdir / f"{trial.name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.train", f"--config={study.file}:{trial.arg}",
             f"--workdir={workdir / trial.name}", *arguments],
            stdout=log, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip


def run(study: Study, trials: Sequence[Trial], workdir: Path, workers: int, say: Callable[[str], None]) -> list[str]:
    """Runs those of a study's trials that have not finished, so many at a time; returns the names of those that failed.

    Raises:
      ValueError: a trial whose configuration is wrong, or not that of the run in its folder; nothing is started then.
    """

    def finished(name: str) -> bool:
        return (workdir / name / "result.json").exists()

    _open(study, trials, workdir)
    waiting = [trial for trial in trials if not finished(trial.name)]
    running: list[tuple[Trial, subprocess.Popen[bytes], float]] = []
    failed: list[str] = []
    say(f"{len(trials)} trials, {len(trials) - len(waiting)} of them finished")
    try:
        while waiting or running:
            for trial in list(waiting):
                if trial.after in failed:
                    waiting.remove(trial)
                    failed.append(trial.name)
                    say(f"{trial.name}: not started, since {trial.after} failed")
                elif len(running) < workers and (trial.after is None or finished(trial.after)):
                    waiting.remove(trial)
                    running.append((trial, _start(study, trial, workdir), time.monotonic()))
            for entry in list(running):
                trial, process, started = entry
                if process.poll() is None:
                    continue
                running.remove(entry)
                if process.returncode or not finished(trial.name):
                    failed.append(trial.name)
                    tail = (workdir / f"{trial.name}.log").read_text(errors="replace").strip().splitlines()[-1:]
                    say(f"{trial.name}: failed with code {process.returncode}: {''.join(tail)}")
                else:
                    say(f"{trial.name}: {time.monotonic() - started:.0f} s, {len(waiting)} to come")
            time.sleep(0.2)
    finally:
        for _, process, _ in running:
            process.terminate()
            process.wait()
    return failed
