"""Makes one page of a study: tables, learning curves, cost, kinds of users, and where one model wins over another.

    python -m experiments.report runs/peft --spec=configs/peft_movielens.py --out=peft.html
    python -m experiments.report runs/id runs/lora --out=page.html --plots=figures

Each DIR is the folder of a run or the workdir of a sweep. The page needs no other file. --plots writes its figures as
PDFs for papers too, with embedded fonts. The last sections compare the best model with the best baseline of --spec, or
with the second best model; they show titles of items, which are read from the runs' data.
"""

from pathlib import Path

from absl import flags

from experiments import tables
from experiments.cli import command
from experiments.cli.console import visible
from experiments.reports import differences, plots
from experiments.reports.bands import bandings
from experiments.reports.page import listing, page
from experiments.reports.statistics import Statistics
from llm4rec_jax.evaluation.metrics import less_is_better
from llm4rec_jax.io import write_text, writing

_SHOWN = 10


def wins(s: Statistics, titles: bool) -> list[tuple[str, str]]:
    """Returns the sections that compare the best model with a baseline or the second best: heading and HTML.

    Args:
      s: The study.
      titles: Whether to read the data of a run and show its titles.
    """
    sign = 1 if less_is_better(s.main) else -1
    if s.main not in s.rows[0].cells or len(s.rows) < 2 or s.rows[0].runs[0].pointwise:
        return []
    best, *others = sorted(s.rows, key=lambda row: sign * row.cells[s.main].mean)
    against = next((row for row in others if row.group in s.baselines), others[0])
    labels = {against.label: against.runs, best.label: best.runs}
    found = differences.duel(labels, s.main) if len(labels) == 2 else None
    if found is None:
        return []
    audience = differences.Audience(best.runs[0]) if titles else None
    heading = f"Where {best.label} and {against.label} differ most in {s.main}"
    made = [(f"{heading}: users", differences.user_rows(found, audience, _SHOWN))]
    if audience is not None:
        made.append((f"{heading}: held-out items", differences.item_rows(found, audience, _SHOWN)))
    return [(visible(name), listing(*rows)) for name, rows in made]


def write_plots(s: Statistics, folder: Path) -> None:
    """Writes the figures of a study as PDFs: intervals, learning curves, cost and kinds of users."""
    found = bandings([run for row in s.rows for run in row.runs])
    figures = {
        "intervals": plots.intervals(s),
        "curves": plots.curves(s),
        "costs": plots.costs(s),
        "users": plots.bands(s, found) if found else None,
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        if figure is not None:
            plots.write_pdf(figure, folder / f"{name}.pdf")


def main(folders: list[str]) -> None:
    given = flags.FLAGS
    out, spec, figures = Path(str(given["out"].value)), given["spec"].value, given["plots"].value
    if not out.parent.is_dir():
        raise ValueError(f"--out={out} is not a file in a folder that exists: make {out.parent} first")
    s = tables.of_folders(list(map(Path, folders)), Path(spec) if spec else None)
    text = page(s, str(given["title"].value), more=wins(s, bool(given["titles"].value)))
    write_text(out, text)
    if figures:
        write_plots(s, Path(figures))
    if command.wants_json():
        command.answer({"page": str(out), "plots": figures})


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "The HTML file to write.", required=True)
    flags.DEFINE_string("spec", None, "Configuration file whose table() says what is shown; None shows all groups.")
    flags.DEFINE_string("title", "Results", "Heading of the page.")
    flags.DEFINE_string("plots", None, "Folder for the figures as PDFs; None writes none.")
    flags.DEFINE_bool("titles", True, "Read the data of the best run, to show titles of items.")
    command.run_on(main, "DIR")
