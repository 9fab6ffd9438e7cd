"""Trials: runs that a configuration file lists, each a folder, started as processes of their own."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


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


def load(file: str) -> list[Trial]:
    """The trials of a configuration file.

    Raises:
      ValueError: no such file, no `sweep` in it, or names that are used twice.
    """
    if not Path(file).is_file():
        raise ValueError(f"--config: {file} does not exist")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sweep: Callable[[], list[Trial]] | None = getattr(module, "sweep", None)
    if sweep is None:
        raise ValueError(f"{file} has no function sweep() that lists trials; train it by experiments.train")
    trials = sweep()
    names = [trial.name for trial in trials]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{file}: sweep() names two trials {', '.join(twice)}")
    if lost := sorted({t.after for t in trials if t.after is not None and t.after not in names}):
        raise ValueError(f"{file}: trials come after {', '.join(lost)}, which sweep() does not list")
    return trials


def _start(file: str, trial: Trial, workdir: Path, cores: Sequence[int]) -> subprocess.Popen[bytes]:
    overrides = dict(trial.overrides)
    if "init_from" in overrides:
        overrides["init_from"] = str(workdir / overrides["init_from"])
    # Trials of a group compile the same programs.
    environment = {"JAX_COMPILATION_CACHE_DIR": str(workdir / "compiled"), **os.environ}
    arguments = [f"--config.{key}={value}" for key, value in overrides.items()]
    with (workdir / f"{trial.name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.train", f"--config={file}:{trial.arg}",
             f"--workdir={workdir / trial.name}", *arguments],
            stdout=log, stderr=subprocess.STDOUT, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip


def run(file: str, trials: Sequence[Trial], workdir: Path, workers: int, say: Callable[[str], None]) -> list[str]:
    """Runs what has not finished, so many at a time; returns the names of those that failed."""
    available = sorted(os.sched_getaffinity(0))
    workers = min(workers, len(available))
    free = [available[i::workers] for i in range(workers)]

    def finished(name: str) -> bool:
        return (workdir / name / "result.json").exists()

    waiting = [trial for trial in trials if not finished(trial.name)]
    running: list[tuple[Trial, subprocess.Popen[bytes], list[int], float]] = []
    failed: list[str] = []
    say(f"{len(trials)} trials, {len(trials) - len(waiting)} of them finished")
    try:
        while waiting or running:
            for trial in list(waiting):
                if trial.after in failed:
                    waiting.remove(trial)
                    failed.append(trial.name)
                    say(f"{trial.name}: not started, since {trial.after} failed")
                elif free and (trial.after is None or finished(trial.after)):
                    waiting.remove(trial)
                    cores = free.pop()
                    running.append((trial, _start(file, trial, workdir, cores), cores, time.monotonic()))
            for entry in list(running):
                trial, process, cores, started = entry
                if process.poll() is None:
                    continue
                running.remove(entry)
                free.append(cores)
                if process.returncode or not finished(trial.name):
                    failed.append(trial.name)
                    tail = (workdir / f"{trial.name}.log").read_text(errors="replace").strip().splitlines()[-1:]
                    say(f"{trial.name}: failed with code {process.returncode}: {''.join(tail)}")
                else:
                    say(f"{trial.name}: {time.monotonic() - started:.0f} s, {len(waiting)} to come")
            time.sleep(0.2)
    finally:
        for _, process, _, _ in running:
            process.terminate()
            process.wait()
    return failed
