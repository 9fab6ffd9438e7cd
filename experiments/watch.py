"""Shows the runs under some folders as a table, live on a terminal and once elsewhere.

    python -m experiments.watch runs/

A run is running while the process that locked its folder lives on this machine. Ctrl-C ends the table and no run.
"""

import time
from pathlib import Path
from typing import Any

import rich.box
import rich.console
import rich.live
import rich.table
import rich.text
from absl import flags

from experiments.cli import command
from experiments.cli.console import visible
from experiments.sweeps.progress import duration, standing_of
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs import locks
from llm4rec_jax.runs.folder import RunFolderError

_EVERY = flags.DEFINE_float("every", 2.0, "Seconds between two looks at the folders.", lower_bound=0.1)
_ALL = flags.DEFINE_bool("all", False, "Show finished runs too.")

_STYLES = {"running": "bold", "stopped": "yellow", "elsewhere": "dim", "damaged": "red", "finished": "dim"}


def runs_under(roots: list[Path]) -> list[Path]:
    """Returns the folders of runs at and below some folders: those with a configuration that a process has locked."""
    found = {file.parent for root in roots for file in root.rglob("config.json") if (file.parent / "lock").exists()}
    return sorted(found)


def status(folder: Path) -> str:
    """Returns how a run stands: finished, running, stopped, or elsewhere, where another machine's process had it."""
    if (folder / "result.json").exists():
        return "finished"
    return {True: "running", False: "stopped", None: "elsewhere"}[locks.holder_lives(folder)]


def names_of(folders: list[Path], roots: list[Path]) -> list[str]:
    """Returns short names of runs, in their order: below a single root the path from there.

    A trial of a sweep has the name that the sweep's `by_name` links to its folder, in place of a hash.

    Args:
      folders: Folders of runs.
      roots: Folders that they were found under.

    Example:
      >>> names_of([Path("runs/peft/lora"), Path("runs/id")], [Path("runs")])
      ['peft/lora', 'id']
    """
    trials: dict[Path, str] = {}
    for sweep in {folder.parent for folder in folders if (folder.parent / "by_name").is_dir()}:
        # In order of names, so that of several names of one trial the same is shown each time.
        for link in sorted((sweep / "by_name").iterdir(), reverse=True):
            trials[link.resolve()] = link.name
    shown = [folder.with_name(trials.get(folder.resolve(), folder.name)) for folder in folders]
    if len(roots) == 1:
        below = [name.is_relative_to(roots[0]) and name != roots[0] for name in shown]
        shown = [name.relative_to(roots[0]) if inside else name for name, inside in zip(shown, below, strict=True)]
    return list(map(str, shown))


def table(roots: list[Path], finished: bool) -> rich.table.Table:
    """Returns a row for each run: running ones first, then by name."""
    shown = rich.table.Table(box=rich.box.SIMPLE, collapse_padding=True, pad_edge=False, caption_justify="left")
    # The names tell the rows apart: on a narrow terminal they are folded, not cut.
    shown.add_column("run", overflow="fold")
    shown.add_column("status")
    for column in ("step", "best validation", "last record", "to go"):
        shown.add_column(column, justify="right")
    folders = runs_under(roots)
    standings = [(folder, name, status(folder)) for folder, name in zip(folders, names_of(folders, roots), strict=True)]
    counts = {kind: sum(own == kind for *_, own in standings) for kind in _STYLES}
    for folder, short, own in sorted(standings, key=lambda standing: list(_STYLES).index(standing[-1])):
        if own == "finished" and not finished:
            continue
        # Text: Rich would read "[b]" in a name as markup.
        name = rich.text.Text(visible(short))
        try:
            config: Any = run_folder.config_of(folder)
            train = config.train
        except (RunFolderError, ValueError) as error:
            counts["damaged"] += 1
            shown.add_row(name, rich.text.Text(visible(f"unreadable: {error}")), style=_STYLES["damaged"])
            continue
        # A baseline has no steps, whatever its study says.
        steps = 0 if config.get("baseline", {}).get("name") else train.steps
        at = standing_of(folder / "metrics.jsonl", train.metric, steps)
        records = folder / "metrics.jsonl"
        shown.add_row(
            name,
            own,
            f"{at.step}/{at.steps}" if at.steps else "",
            "" if at.best is None else f"{train.metric} {at.best:.4f}",
            f"{duration(max(time.time() - records.stat().st_mtime, 0))} ago" if records.exists() else "",
            duration(at.left) if own == "running" and at.left is not None else "",
            style=_STYLES[own],
        )
    shown.caption = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "no runs"
    return shown


def main(folders: list[str]) -> None:
    roots = list(map(Path, folders))
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"{root} is not a folder: give one with runs in it")
    console = rich.console.Console()
    if not console.is_terminal:
        console.print(table(roots, _ALL.value))
        return
    with rich.live.Live(table(roots, _ALL.value), console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(_EVERY.value)
                live.update(table(roots, _ALL.value), refresh=True)
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    command.run_on(main, "DIR")
