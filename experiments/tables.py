"""Makes a table of finished runs, as Markdown, LaTeX, HTML or CSV.

    python -m experiments.tables runs/peft --format=latex --out=table.tex
    python -m experiments.tables runs/id-0 runs/id-1 runs/lora-0 runs/lora-1 --format=html --out=table.html

Each DIR is the folder of a run or the workdir of a sweep. What a table shows is a `Table`, which the configuration
file of the sweep, or the one that --spec names, returns from its function `table()`. See docs/guides/tables.md.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from experiments.cli import command
from experiments.reports import finished_runs
from experiments.reports.page import page
from experiments.reports.render import latex, markdown, tidy
from experiments.reports.spec import COSTS, Table, load_table
from experiments.reports.statistics import Statistics, statistics
from llm4rec_jax.registry import unknown_name

__all__ = ["COSTS", "Table", "of_folders", "of_sweep"]

FORMATS: dict[str, Callable[[Statistics], str]] = {"markdown": markdown, "latex": latex, "html": page, "csv": tidy}


def of_sweep(workdir: Path) -> str:
    """The Markdown table of a sweep's finished trials, as its configuration file wants it.

    What is left out is said on standard error.

    Raises:
      ValueError: no trial has finished, trials that do not belong in one table, or a `table()` that cannot be made.
    """
    return markdown(of_folders([workdir]))


def of_folders(folders: Sequence[Path], spec: Path | None = None) -> Statistics:
    """The figures of a table.

    Args:
      folders: of runs, or workdirs of sweeps.
      spec: a configuration file with a `table()`; None: that of the first sweep, if there is one.

    Raises:
      ValueError: as `of_sweep`.
    """
    found = finished_runs.find(folders, _warn)
    table = Table()
    if spec is not None:
        table = load_table(spec)
    elif found.specs and found.specs[0].is_file():
        table = load_table(found.specs[0])
    elif found.specs:
        _warn(f"{found.specs[0]}, the sweep's configuration, does not exist here; all groups are shown (see --spec)")
    return statistics(table, found, _warn)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def write(folders: Sequence[Path], form: str, spec: Path | None = None) -> str:
    """A table in one of the FORMATS; see `of_folders`.

    Raises:
      ValueError: an unknown format, and as `of_folders`.
    """
    if form not in FORMATS:
        raise ValueError(unknown_name("table format", form, FORMATS))
    return FORMATS[form](of_folders(folders, spec))


def main(folders: list[str]) -> None:
    spec, out = flags.FLAGS["spec"].value, flags.FLAGS["out"].value
    text = write(list(map(Path, folders)), str(flags.FLAGS["format"].value), Path(spec) if spec else None)
    if out is None:
        print(text, end="")
    else:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    # Not at import: the commands that use this module have flags of their own.
    flags.DEFINE_string("format", "markdown", f"One of {', '.join(FORMATS)}.")
    flags.DEFINE_string("spec", None, "A configuration file whose table() says what is shown; by default the sweep's.")
    flags.DEFINE_string("out", None, "Where the table is written; by default it is printed.")
    command.run_on(main, "DIR")
