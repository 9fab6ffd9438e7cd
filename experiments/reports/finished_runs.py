"""Run folders as a table reads them: found, grouped by what differs only in the seed, and refused where they do not
belong together."""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from llm4rec_jax import checksums
from llm4rec_jax.evaluation.metrics import auc
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs.folder import RunFolderError
from llm4rec_jax.training import metric_writer

# Columns of per_user_test.parquet, and entries of result.json's metrics, that are no metrics.
ABOUT_USERS = ("user_id", "targets", "history", "target_popularity")
COUNTS = ("users", "users_skipped", "repeated_targets", "users_constant", "rows", "liked_share")
_ROW_COLUMNS = ("user_id", "item_id", "label", "score")
# Keys that runs of one group may differ in.
_OF_A_SEED = ("seed", "init_from")


class FinishedRun(NamedTuple):
    """A finished run.

    Attributes:
      folder: as it was given.
      result: result.json.
      data: dataset.json.
      config: config.json, flat: {"train.steps": 10}; empty without one.
      tested: per_user_test.parquet, a row a user [E], or per_row_test.parquet, a row a label [n].
      pointwise: whether it is the latter.
    """

    folder: Path
    result: Mapping[str, Any]
    data: Mapping[str, Any]
    config: Mapping[str, Any]
    tested: pl.DataFrame
    pointwise: bool

    @property
    def metrics(self) -> list[str]:
        """The names of what was measured on test."""
        return [name for name in self.result["test"] if name not in COUNTS]

    @property
    def users(self) -> int:
        """Number of tested users."""
        return self.tested["user_id"].n_unique()

    def values(self, metric: str) -> np.ndarray | None:
        """A metric's value by user [E]; None where it is one of the whole, such as coverage."""
        return None if self.pointwise or metric not in self.tested else self.tested[metric].to_numpy()


class RunGroups(NamedTuple):
    """Runs of some folders, by group.

    Attributes:
      groups: name to finished runs that differ in their seed; at least one each.
      unfinished: names of groups that have no finished run.
      specs: configuration files of the sweeps among the folders.
    """

    groups: dict[str, list[FinishedRun]]
    unfinished: list[str]
    specs: list[Path]


def read(folder: Path) -> FinishedRun:
    """A finished run.

    Raises:
      RunFolderError: a file that is missing or damaged, or does not say what result.json says; the message names it.
    """
    run_folder.check_files(folder)
    result = run_folder.read(folder / "result.json")
    try:
        numbers = [*result["test"].values(), *result["parameters"].values(), result["seconds"]]
        sound = all(isinstance(number, (int, float)) for number in numbers)
    except (AttributeError, KeyError, TypeError):
        sound = False
    if not sound:
        raise RunFolderError(
            f"{folder / 'result.json'} is damaged: it must have numbers by name in test and parameters, and seconds"
        )
    data = run_folder.read(folder / "dataset.json")
    if not isinstance(data, dict) or not {"name", "fingerprint", "protocol"} <= set(data):
        raise RunFolderError(f"{folder / 'dataset.json'} is damaged: it must have name, fingerprint and protocol")
    config = _flat(run_folder.read(folder / "config.json")) if (folder / "config.json").exists() else {}
    pointwise = (folder / "per_row_test.parquet").exists()
    file = folder / ("per_row_test.parquet" if pointwise else "per_user_test.parquet")
    if not file.exists():
        raise RunFolderError(f"{file} does not exist, though {folder / 'result.json'} does")
    tested = run_folder.read_table(file)
    history = folder / "metrics.jsonl"
    try:
        records = len(metric_writer.read(history))
    except checksums.Damaged as error:
        raise RunFolderError(str(error)) from error
    if history.exists() and records != result.get("records", records):
        raise RunFolderError(f"{history} is damaged: {records} of its {result['records']} records are left")
    run = FinishedRun(folder, result, data, config, tested, pointwise)
    wanted = _ROW_COLUMNS if pointwise else ("user_id",)
    if lost := [name for name in wanted if name not in tested]:
        raise RunFolderError(f"{file} is damaged: it has no column {', '.join(lost)}")
    if not len(tested):
        raise RunFolderError(f"{file} is damaged: it has no rows")
    for metric in run.metrics:
        values, said = run.values(metric), result["test"][metric]
        if values is not None and not np.isclose(np.mean(values), said, rtol=1e-5, atol=1e-9):
            raise RunFolderError(
                f"{file}: the mean of {metric} is {np.mean(values):.6g}, and {folder / 'result.json'} says {said:.6g}; "
                "they are of different evaluations"
            )
    if pointwise and "auc" in run.metrics:
        area = auc(tested["score"].to_numpy(), tested["label"].to_numpy())
        if not np.isclose(area, result["test"]["auc"], rtol=1e-5):
            raise RunFolderError(
                f"{file}: the auc of its rows is {area:.6g}, and {folder / 'result.json'} says "
                f"{result['test']['auc']:.6g}; they are of different evaluations"
            )
    return run


def find(folders: Sequence[Path], warn: Callable[[str], None]) -> RunGroups:
    """The runs in folders, each a run's own or a sweep's workdir.

    Trials of a sweep are grouped as it says. Other runs are grouped by their configuration without the seed, and a
    group is called what its folders' names begin with. Names that occur twice get the folder's path before them.

    Args:
      folders: where to look; a run that is found twice counts once.
      warn: is told of what is left out, a line each.

    Raises:
      ValueError: no folders, one that is neither, a damaged file, two runs of one configuration and seed, or no
        finished run at all.
    """
    if not folders:
        raise ValueError("no folders: give those of runs, or the workdir of a sweep")
    listed: list[tuple[str, Path, list[Path]]] = []  # group, whence, its runs' folders
    loose, specs = [], []
    for folder in folders:
        if (folder / "sweep.json").exists():
            config, trials = _sweep(folder)
            specs.append(config)
            listed += [(group, folder, own) for group, own in trials.items()]
        elif (folder / "config.json").exists() or (folder / "result.json").exists():
            loose.append(folder)
        else:
            raise ValueError(
                f"{folder} is neither the folder of a run (it has no config.json) nor the workdir of a sweep (it has "
                "no sweep.json)"
            )
    listed += _grouped(loose)
    names = [group for group, _, _ in listed]
    groups: dict[str, list[FinishedRun]] = {}
    unfinished, seen = [], set()
    for group, whence, own in listed:
        name = group if names.count(group) == 1 else str(whence if whence in own else whence / group)
        fresh = list({folder.resolve(): folder for folder in own if folder.resolve() not in seen}.values())
        if not fresh:
            continue
        seen |= {folder.resolve() for folder in fresh}
        finished = [folder for folder in fresh if (folder / "result.json").exists()]
        for folder in [folder for folder in fresh if folder not in finished]:
            warn(f"{folder} ({name}) has not finished (it has no result.json); left out")
        if finished:
            groups[name] = [read(folder) for folder in finished]
            _check_group(name, groups[name], warn)
        else:
            warn(f"{name}: no run of it has finished; left out")
            unfinished.append(name)
    if not groups:
        raise ValueError(f"no run in {', '.join(map(str, folders))} has finished (none has a result.json)")
    return RunGroups(groups, unfinished, list(dict.fromkeys(specs)))


def check_comparable(runs: Iterable[FinishedRun]) -> None:
    """Every run was evaluated as the first was.

    Raises:
      ValueError: data, split, users or metrics differ; the message names both folders and what differs, with both
        values.
    """
    first, *others = runs
    for run in others:
        if differing := [f"{name} ({a} and {b})" for name, a, b in _differing(first, run)]:
            raise ValueError(
                f"{first.folder} and {run.folder} cannot share a table, which needs one dataset, split and evaluation; "
                f"they differ in {'; '.join(differing)}"
            )


def _differing(a: FinishedRun, b: FinishedRun) -> list[tuple[str, str, str]]:
    found = [
        (name, repr(a.data[name]), repr(b.data[name]))
        for name in ("name", "fingerprint", "protocol")
        if a.data[name] != b.data[name]
    ]
    splits = a.data.get("split") or {}, b.data.get("split") or {}
    # A newer version may count more.
    for key in [key for key in splits[0] if key in splits[1] and splits[0][key] != splits[1][key]]:
        found.append((f"split.{key}", str(splits[0][key]), str(splits[1][key])))
    # Models that rank without vectors have no diversity of their lists.
    pair = tuple([name for name in run.metrics if not name.startswith("diversity@")] for run in (a, b))
    only = [", ".join(name for name in own if name not in other) for own, other in (pair, pair[::-1])]
    if any(only):
        found.append(("metrics", f"only there: {only[0] or 'none'}", f"only there: {only[1] or 'none'}"))
    if a.pointwise != b.pointwise:
        kinds = "labels of rows", "ranks of targets"
        return [*found, ("what was tested", kinds[not a.pointwise], kinds[not b.pointwise])]
    keys = _ROW_COLUMNS[:3] if a.pointwise else ABOUT_USERS
    if len(a.tested) != len(b.tested):
        return [*found, ("tested rows" if a.pointwise else "tested users", f"{len(a.tested):,}", f"{len(b.tested):,}")]
    for key in keys:
        if key in a.tested and key in b.tested:
            own, other = a.tested[key].to_list(), b.tested[key].to_list()
            at = next((i for i, (x, y) in enumerate(zip(own, other, strict=True)) if x != y), None)
            if at is not None:
                found.append((f"{key} of row {at} of the tested", repr(own[at]), repr(other[at])))
    return found


def _sweep(workdir: Path) -> tuple[Path, dict[str, list[Path]]]:
    """Returns a sweep's configuration file, and the folders of its runs by group."""
    file = workdir / "sweep.json"
    sweep = run_folder.read(file)
    try:
        groups: dict[str, list[Path]] = {}
        for trial in sweep["trials"]:
            groups.setdefault(trial["group"], []).append(workdir / trial["folder"])
        return Path(sweep["config"]), groups
    except (KeyError, TypeError) as error:
        raise RunFolderError(
            f"{file} is damaged ({error!r}): it must have config, and trials, each with folder and group"
        ) from error


def _grouped(folders: Sequence[Path]) -> list[tuple[str, Path, list[Path]]]:
    """Runs given on their own, by their configuration without the seed: (name, first folder, folders)."""
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        key = str(folder.resolve())
        if (folder / "config.json").exists():
            config = _flat(run_folder.read(folder / "config.json"))
            key = json.dumps({k: v for k, v in config.items() if k not in _OF_A_SEED}, sort_keys=True)
        groups.setdefault(key, []).append(folder)
    return [(_name(own), own[0], own) for own in groups.values()]


def _name(folders: Sequence[Path]) -> str:
    """Returns the common prefix of folders' names, less a seed: id-0 and id-1 are id."""
    names = [folder.name or folder.resolve().name for folder in folders]
    if len(set(names)) == 1:
        return names[0]
    together = zip(*names, strict=False)
    prefix = "".join(letters[0] for letters in itertools.takewhile(lambda letters: len(set(letters)) == 1, together))
    return re.sub(r"[-_.]+(seed|s)?[-_.]*\d*$", "", prefix) or names[0]


def _check_group(name: str, runs: Sequence[FinishedRun], warn: Callable[[str], None]) -> None:
    """Runs of a group are of different seeds; what else differs is told."""
    known = [run for run in runs if run.config]
    for i, run in enumerate(known):
        for other in known[:i]:
            if run.config == other.config:
                raise ValueError(
                    f"{other.folder} and {run.folder} are one configuration with one seed: as two seeds they would "
                    "make the spread too small; give one of them"
                )
    if known:
        keys = dict.fromkeys(key for run in known for key in run.config if key not in _OF_A_SEED)
        others = [key for key in keys if len({json.dumps(run.config.get(key)) for run in known}) > 1]
        if others:
            warn(f"{name}: its runs differ in more than the seed: {', '.join(others)}")


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"train.steps": 10}; null is left out: configurations gain keys that are null as long as nobody sets them."""
    if not isinstance(config, dict):
        return {} if config is None else {prefix[:-1]: config}
    return {key: value for name, own in config.items() for key, value in _flat(own, f"{prefix}{name}.").items()}
