"""Compares two runs: their configurations, their metrics with tests, and the users and items where they differ most.

    python -m experiments.compare runs/frozen runs/lora
    python -m experiments.compare runs/frozen runs/lora --metric=hr@10 --count=20 --notitles

A difference is the second run less the first. Its interval is a bootstrap over users, and p is the sign-flip test's,
with Holm's adjustment for all metrics. Prints Markdown.
"""

from pathlib import Path

from absl import flags

from experiments.cli import command
from experiments.cli.console import to_stderr, visible
from experiments.reports import differences, finished_runs
from experiments.reports.differences import Rows
from experiments.reports.render import escape_markdown, markdown_table
from experiments.reports.spec import Table
from experiments.reports.statistics import Statistics, statistics

_METRIC = flags.DEFINE_string("metric", None, "Metric of users and items; None takes NDCG@10 if there is one.")
_COUNT = flags.DEFINE_integer("count", 5, "Number of users, and of items, for each run.", lower_bound=1)
_TITLES = flags.DEFINE_bool("titles", True, "Read the data of the runs, to show titles of items.")


def metric_rows(s: Statistics) -> Rows:
    """Returns the metrics of two rows, the first of which is the baseline, with differences and p."""
    first, second = s.rows
    rows = []
    for metric in s.metrics:
        a, b = first.cells[metric], second.cells[metric]
        row = [metric, f"{a.mean:.4f}", f"{b.mean:.4f}", f"{b.mean - a.mean:+.4f}"]
        if b.comparison is None:
            rows.append([*row, "", "", ""])
            continue
        (_, low, high), p, adjusted = b.comparison
        rows.append([*row, f"[{low:+.4f}, {high:+.4f}]", f"{p:.4f}", f"{adjusted:.4f}"])
    return Rows(["metric", first.label, second.label, "difference", "95% interval", "p", "adjusted p"], rows)


def section(heading: str, table: Rows) -> str:
    """Returns a section in Markdown, whose cells are shown as they are."""
    header, rows = (
        [[escape_markdown(visible(cell)) for cell in row] for row in part] for part in ([table[0]], table[1])
    )
    body = markdown_table(header[0], rows) if rows else "There is no difference."
    return f"## {heading}\n\n{body}\n"


def table_of(table: Rows) -> list[dict[str, str]]:
    """Returns the rows of a table, each by the names of its columns."""
    header, rows = table
    return [dict(zip(header, row, strict=True)) for row in rows]


def main(folders: list[str]) -> None:
    if len(folders) != 2:
        raise ValueError(f"compares two runs, and {len(folders)} are given: give two folders")
    a, b = runs = [finished_runs.read(Path(folder)) for folder in folders]
    names = [run.folder.name for run in runs]
    if names[0] == names[1]:
        names = [str(run.folder) for run in runs]
    groups = {name: [run] for name, run in zip(names, runs, strict=True)}
    if len(groups) < 2:
        raise ValueError(f"{folders[0]} is given twice: give two folders")
    shared = [metric for metric in a.metrics if metric in b.metrics]
    table = Table(metrics=shared, costs=(), baseline=names[0], main=_METRIC.value)
    s = statistics(table, finished_runs.RunGroups(groups, [], []), to_stderr)
    parts = [("Configuration", differences.configuration_rows(a, b)), ("Test metrics", metric_rows(s))]
    found = differences.duel(groups, s.main)
    if found is not None:
        audience = differences.Audience(b) if _TITLES.value else None
        parts.append((f"Users by {s.main}", differences.user_rows(found, audience, _COUNT.value)))
        if audience is not None:
            parts.append((f"Held-out items by {s.main}", differences.item_rows(found, audience, _COUNT.value)))
    if command.wants_json():
        command.answer({heading: table_of(rows) for heading, rows in parts})
    else:
        print("\n".join(section(*part) for part in parts))


if __name__ == "__main__":
    command.run_on(main, "DIR")
