"""Makes a table of finished runs, as Markdown, LaTeX, HTML or CSV.

    python -m experiments.tables runs/peft --spec=configs/peft_movielens.py --format=latex --out=table.tex
    python -m experiments.tables runs/id-0 runs/id-1 runs/lora-0 runs/lora-1 --format=html --out=table.html

Each DIR is the folder of a run or the workdir of a sweep. The function `table()` of the file that --spec names returns
the `Table` that says what is shown; without --spec all groups are. See docs/guides/tables.md.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from experiments.cli import command
from experiments.cli.console import to_stderr
from experiments.reports import finished_runs
from experiments.reports.page import page
from experiments.reports.render import latex, markdown, tidy
from experiments.reports.spec import COSTS, Table, load_table
from experiments.reports.statistics import Statistics, statistics
from llm4rec_jax.io import write_text, writing
from llm4rec_jax.registry import unknown_name

__all__ = ["COSTS", "Table", "of_folders", "of_sweep"]

FORMATS: dict[str, Callable[[Statistics], str]] = {"markdown": markdown, "latex": latex, "html": page, "csv": tidy}


def of_sweep(workdir: Path, spec: Path) -> str:
    """Returns the Markdown table of a sweep's finished trials, as its configuration file describes it.

    Names what is left out on standard error.

    Raises:
      ValueError: no trial has finished, trials that do not belong in one table, or a `table()` that cannot be made.
    """
    return markdown(of_folders([workdir], spec))


def of_folders(folders: Sequence[Path], spec: Path | None = None) -> Statistics:
    """Returns the figures of a table.

    A folder says which configuration file made it, but that file is a program: it is run only as `spec`.

    Args:
      folders: of runs, or workdirs of sweeps.
      spec: a configuration file with a `table()`; None shows all groups.

    Raises:
      ValueError: as `of_sweep`.
    """
    runs = finished_runs.find(folders, _warn)
    if spec is None:
        for file in runs.specs:
            _warn(f"all groups are shown; if {file}, which made this sweep, has a table(), --spec={file} follows it")
    return statistics(Table() if spec is None else load_table(spec), runs, _warn)


def _warn(text: str) -> None:
    to_stderr(f"warning: {text}")


def write(folders: Sequence[Path], form: str, spec: Path | None = None) -> str:
    """Returns a table in one of the FORMATS; see `of_folders`.

    Raises:
      ValueError: an unknown format, and as `of_folders`.
    """
    if form not in FORMATS:
        raise ValueError(unknown_name("table format", form, FORMATS))
    return FORMATS[form](of_folders(folders, spec))


def main(folders: list[str]) -> None:
    spec, out = flags.FLAGS["spec"].value, flags.FLAGS["out"].value
    form = "csv" if command.wants_json() else str(flags.FLAGS["format"].value)
    text = write(list(map(Path, folders)), form, Path(spec) if spec else None)
    if command.wants_json():
        text = json.dumps({"rows": list(csv.DictReader(io.StringIO(text)))}) + "\n"
    if out is None:
        print(text, end="")
    else:
        with writing(Path(out)):
            Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(out), text)


if __name__ == "__main__":
    # Not at import: the commands that use this module have flags of their own.
    flags.DEFINE_string("format", "markdown", f"One of {', '.join(FORMATS)}.")
    flags.DEFINE_string("spec", None, "Configuration file whose table() says what is shown; None shows all groups.")
    flags.DEFINE_string("out", None, "File to write; None prints the table.")
    command.run_on(main, "DIR")
