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


def table(roots: list[Path], finished: bool) -> rich.table.Table:
    """Returns a row for each run: running ones first, then by name."""
    shown = rich.table.Table(box=rich.box.SIMPLE, caption_justify="left")
    for name, justify in (("run", "left"), ("status", "left"), ("step", "right"), ("best validation", "right")):
        shown.add_column(name, justify="right" if justify == "right" else "left")
    for name in ("last record", "to go"):
        shown.add_column(name, justify="right")
    standings = [(folder, status(folder)) for folder in runs_under(roots)]
    counts = {kind: sum(own == kind for _, own in standings) for kind in _STYLES}
    for folder, own in sorted(standings, key=lambda pair: list(_STYLES).index(pair[1])):
        if own == "finished" and not finished:
            continue
        # Text: Rich would read "[b]" in a name as markup.
        name = rich.text.Text(visible(str(folder)))
        try:
            config: Any = run_folder.config_of(folder)
            train = config.train
        except (RunFolderError, ValueError) as error:
            counts["damaged"] += 1
            shown.add_row(name, rich.text.Text(visible(f"unreadable: {error}")), style=_STYLES["damaged"])
            continue
        at = standing_of(folder / "metrics.jsonl", train.metric, train.steps)
        records = folder / "metrics.jsonl"
        shown.add_row(
            name,
            own,
            f"{at.step}/{at.steps}",
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
