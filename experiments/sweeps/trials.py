"""Trials: runs that a configuration file lists, and the folders that are theirs.

A folder is named by what is run in it, the hash of its resolved configuration, so that a trial that is listed again,
by whatever name and whichever sweep, is the run that is there already, and one that was changed is another.
"""

import contextlib
import functools
import hashlib
import json
import re
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.cli.overrides import merge_options
from llm4rec_jax.data.sources import LABELED_SOURCES
from llm4rec_jax.io import replacing
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs import plugins
from llm4rec_jax.runs.features import feature_names
from llm4rec_jax.runs.folder import RunFolderError

RESOURCES = {"cpus": 1.0, "gpus": 0.0}

# Keys that may differ: they are arrays to the program, or come in through them.
MAY_DIFFER = ("seed", "init_from", "train.learning_rate", "train.weight_decay")

_NAME = re.compile(r"[^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]{0,99}")


class Trial(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: a name for people.
      arg: text after the colon of `--config=FILE.py:arg`; empty for the file's default.
      overrides: configuration keys with their values, {"train.steps": 10}; `init_from` is another trial's name, or a
        folder.
      group: trials that differ only in their seed; a row of the table.
      after: the name of a trial that must have finished. One that `init_from` names must in any case.
    """

    name: str
    arg: str
    overrides: Mapping[str, Any]
    group: str
    after: str | None = None


class Study(NamedTuple):
    """A configuration file that lists trials, or searches.

    Attributes:
      file: its path.
      get_config: gives the configuration of `FILE.py:arg`, or of `FILE.py`.
      trials: those that its `sweep()` lists; empty without one.
      baseline: its BASELINE, the group that the table compares the others with; None without one.
      search: its `search(trial)`, from an Optuna trial to overrides; None without one.
      resources: needs of a trial, {"cpus": number, "gpus": number}: its RESOURCES.
      slurm: its SLURM, parameters of submitit.
    """

    file: str
    get_config: Callable[..., Any]
    trials: list[Trial]
    baseline: str | None
    search: Callable[[Any], Mapping[str, Any]] | None
    resources: Mapping[str, float]
    slurm: Mapping[str, Any]


class TrialRun(NamedTuple):
    """A trial with its place.

    Attributes:
      trial: as it was listed.
      config: resolved; `init_from` is the absolute path of a folder.
      folder: WORKDIR/HASH, absolute.
      needs: folders, with the names of their trials, whose runs must have finished.
      command: runs it.
    """

    trial: Trial
    config: Any
    folder: Path
    needs: Mapping[Path, str]
    command: tuple[str, ...]

    @property
    def finished(self) -> bool:
        return (self.folder / "result.json").exists()


def load(file: str) -> Study:
    """The study of a configuration file.

    Raises:
      ValueError: no such file, or no `get_config` in it; names of trials that are used twice, not at all, or cannot be
        those of a file; a baseline without trials; resources that do not exist.
    """
    if not Path(file).is_file():
        raise ValueError(f"--config: {file} does not exist")
    module = runpy.run_path(file)
    if "get_config" not in module:
        raise ValueError(f"{file} has no function get_config(arg) that returns a configuration")
    trials = list(module["sweep"]()) if "sweep" in module else []
    names = [trial.name for trial in trials]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{file}: sweep() names two trials {', '.join(twice)}")
    if wrong := sorted(name for name in names if not _NAME.fullmatch(name)):
        raise ValueError(
            f"{file}: sweep() names a trial {wrong[0]!r}; a name is a file's: at most 100 characters, none "
            "of them a slash or a control character, the first no dot"
        )
    if lost := sorted({t.after for t in trials if t.after is not None and t.after not in names}):
        raise ValueError(f"{file}: trials come after {', '.join(lost)}, which sweep() does not list")
    baseline = module.get("BASELINE")
    if baseline is not None and baseline not in {trial.group for trial in trials}:
        raise ValueError(f"{file}: BASELINE is {baseline!r}, and sweep() lists no trials of that group")
    resources = module.get("RESOURCES", {})
    for name, amount in resources.items():
        if name not in RESOURCES:
            raise ValueError(f"{file}: RESOURCES: {unknown_name('resource', name, RESOURCES)}")
        if not isinstance(amount, int | float) or amount < 0:
            raise ValueError(f"{file}: RESOURCES[{name!r}] is {amount!r}, and must be a number, 0 or more")
    return Study(
        file,
        module["get_config"],
        trials,
        baseline,
        module.get("search"),
        {**RESOURCES, **resources},
        module.get("SLURM", {}),
    )


def swept(study: Study) -> Study:
    """The study; ValueError when its file lists no trials."""
    if not study.trials:
        raise ValueError(f"{study.file} has no function sweep() that lists trials; train it by experiments.train")
    return study


def identity(config: Mapping[str, Any], workdir: Path) -> str:
    """The name of the folder of a resolved configuration: the first 12 digits of a SHA-256 over its canonical JSON.

    A folder in `workdir` that a run starts from enters as `../NAME`, so that it does not matter where the workdir lies.
    Keys that are None or empty do not enter, so that a new option, unset by default, leaves names as they were.
    """
    start = config.get("init_from")
    if start is not None and Path(start).parent == workdir.resolve():
        config = {**config, "init_from": f"../{Path(start).name}"}
    text = json.dumps(_set(config), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _set(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys that are set in a configuration."""
    inner = {name: _set(value) if isinstance(value, Mapping) else value for name, value in config.items()}
    return {name: value for name, value in inner.items() if value is not None and value != {}}


def shape(config: Mapping[str, Any]) -> str:
    """Returns the part of a configuration that runs trained together share, as text: all but `MAY_DIFFER`."""
    plain = json.loads(json.dumps(config))
    for key in MAY_DIFFER:
        *path, name = key.split(".")
        inner = plain
        for part in path:
            inner = inner[part]
        inner.pop(name, None)
    return json.dumps(plain, sort_keys=True)


def batches(runs: Sequence[TrialRun], together: int) -> list[list[TrialRun]]:
    """Groups runs, in their order: at most `together` unfinished ones that one program can train.

    Those are runs that rank and are trained. They differ only in what `MAY_DIFFER` lists; a batch waits for all that
    its runs need, so its runs come equally late: none needs another, nor do batches need each other.
    """
    by_folder = {run.folder: run for run in runs}

    @functools.cache
    def rounds(folder: Path) -> int:
        """Returns the number of runs that must have finished, one after another, before this one can be started."""
        needed = [by_folder[other] for other in by_folder[folder].needs if other in by_folder]
        return max((1 + rounds(other.folder) for other in needed if not other.finished), default=0)

    found: list[list[TrialRun]] = []
    by_shape: dict[tuple[str, int], list[TrialRun]] = {}
    for run in runs:
        config = json.loads(run.config.to_json())
        fitted, asked = config["baseline"]["name"] is not None, config["data"]["source"] in LABELED_SOURCES
        # Features are fitted to training data, of which each seed draws its own.
        drawn = config["data"]["few_shot"] is not None and any(feature_names(run.config))
        if together == 1 or run.finished or fitted or asked or drawn:
            found.append([run])
            continue
        key = shape(config), rounds(run.folder)
        if len(by_shape.get(key, [])) in (0, together):
            by_shape[key] = []
            found.append(by_shape[key])
        by_shape[key].append(run)
    return found


def joint_command(runs: Sequence[TrialRun]) -> tuple[str, ...]:
    """Arguments of Python that train the runs, whose folders are in one workdir, in one program."""
    names = ",".join(run.folder.name for run in runs)
    command = ("-m", "experiments.train_together", f"--workdir={runs[0].folder.parent}", f"--runs={names}", "--debug")
    # The configuration file has named them, and the folders' word alone is not enough.
    imports = ",".join(plugins.names(runs[0].config))
    return (*command, f"--trust_imports={imports}") if imports else command


def place(study: Study, trial: Trial, workdir: Path, placed: Mapping[str, TrialRun]) -> TrialRun:
    """A trial's configuration, folder and command.

    Args:
      study: whose trial it is.
      trial: to be placed.
      workdir: holds the folders of all runs.
      placed: by name, the trials that it may come after or start from.

    Raises:
      ValueError: the configuration cannot be had; the message names file and trial.
    """
    workdir = workdir.resolve()
    overrides = dict(trial.overrides)
    needs = {} if trial.after is None else {placed[trial.after].folder: trial.after}
    start = overrides.get("init_from")
    if isinstance(start, str) and start in placed:
        overrides["init_from"] = str(placed[start].folder)
        needs[placed[start].folder] = start
    try:
        config = _configuration(study, trial.arg)
        for key, value in overrides.items():
            if isinstance(value, Mapping):
                # As the command line, by which the trial is run, reads it.
                overrides[key] = merge_options(config, key, value, overrides)[0]
        config.update_from_flattened_dict(overrides)
        held = json.loads(config.to_json())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = error.args[0] if error.args else error
        raise ValueError(f"{study.file}: the trial {trial.name} cannot be configured: {said}") from error
    folder = workdir / identity(held, workdir)
    arguments = [f"--config.{key}={value}" for key, value in overrides.items()]
    # With --debug an error that its user can mend leaves its traceback too.
    file = f"{study.file}:{trial.arg}" if trial.arg else study.file
    command = ("-m", "experiments.train", f"--config={file}", f"--workdir={folder}", "--debug")
    return TrialRun(trial, config, folder, needs, (*command, *arguments))


def plan(study: Study, workdir: Path) -> list[TrialRun]:
    """All trials of a sweep in their order, each with its place.

    Raises:
      ValueError: a configuration is wrong; two trials have the same; trials wait for each other in a circle.
    """
    names = {trial.name: trial for trial in study.trials}
    placed: dict[str, TrialRun] = {}

    def visit(trial: Trial, waiting: tuple[str, ...]) -> None:
        if trial.name in placed:
            return
        if trial.name in waiting:
            circle = " → ".join([*waiting[waiting.index(trial.name) :], trial.name])
            raise ValueError(f"{study.file}: trials wait for each other: {circle}")
        for name in (trial.after, trial.overrides.get("init_from")):
            if name in names:
                visit(names[name], (*waiting, trial.name))
        placed[trial.name] = place(study, trial, workdir, placed)

    for trial in study.trials:
        visit(trial, ())
    runs = [placed[trial.name] for trial in study.trials]
    holders: dict[Path, str] = {}
    for run in runs:
        if run.folder in holders:
            raise ValueError(
                f"{study.file}: the trials {holders[run.folder]} and {run.trial.name} have the same configuration; "
                "list it once, or change one of them"
            )
        holders[run.folder] = run.trial.name
    return runs


def select(runs: Sequence[TrialRun], groups: Sequence[str]) -> list[TrialRun]:
    """The runs of some groups, and those that they need; ValueError for a group without trials."""
    existing = {run.trial.group for run in runs}
    if unknown := sorted(set(groups) - existing):
        raise ValueError(f"--only: no trials of {', '.join(unknown)}; there are: {', '.join(sorted(existing))}")
    chosen = {run.folder for run in runs if run.trial.group in groups}
    # Needed runs may need others.
    while more := {folder for run in runs if run.folder in chosen for folder in run.needs} - chosen:
        chosen |= more
    return [run for run in runs if run.folder in chosen]


def open_folder(run: TrialRun) -> None:
    """Makes a run's folder with its configuration, and the link WORKDIR/by_name/NAME to it.

    A workdir may have been moved since: the configurations in it are then brought up to date.

    Raises:
      RunFolderError: the folder holds the run of another configuration.
    """
    workdir = run.folder.parent
    run.folder.mkdir(parents=True, exist_ok=True)
    file, asked = run.folder / "config.json", json.loads(run.config.to_json())
    held = run_folder.read(file) if file.exists() else None
    if held != asked:
        if held is not None and _unmoved(held) != _unmoved(asked):
            raise RunFolderError(
                f"{file} is not what its folder is named by, the configuration of the trial {run.trial.name}: it was "
                "changed, or the run was started with values that read otherwise on a command line. Remove the folder "
                "to run the trial again"
            )
        run_folder.write(file, asked)
    named = workdir / "by_name" / run.trial.name
    named.parent.mkdir(exist_ok=True)
    # Some file systems have no links; they are a convenience.
    with contextlib.suppress(OSError), replacing(named, durable=False) as scratch:
        scratch.symlink_to(Path("..") / run.folder.name)


def _unmoved(config: Mapping[str, Any]) -> dict[str, Any]:
    start = config.get("init_from")
    return _set({**config, "init_from": None if start is None else Path(start).name})


def configuration(study: Study, arg: str) -> Any:
    """Returns the configuration of `FILE.py:arg`; ValueError when the file has no such configuration."""
    try:
        return _configuration(study, arg)
    except ValueError as error:
        raise ValueError(f"--config: {study.file}:{arg}: {error}") from error


def _configuration(study: Study, arg: str) -> Any:
    return study.get_config(arg) if arg else study.get_config()
