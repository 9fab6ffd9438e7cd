"""The quickstart's table and page: a run a model, with intervals over users, and recommendations side by side."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from experiments.cli.console import visible
from experiments.reports import finished_runs, render
from experiments.reports import page as html_page
from experiments.reports.spec import Table
from experiments.reports.statistics import Statistics, statistics


def markdown(runs: Mapping[str, Path], note: str) -> str:
    """Test metrics of runs as a Markdown table, with 95% intervals, parameters and time.

    Args:
      runs: label to run folder.
      note: Paragraph below the table.

    Raises:
      ValueError: runs that do not belong in one table, or a damaged one.
    """
    return f"{render.markdown(_statistics(runs)).rstrip()}\n\n{note}\n"


def page(
    file: Path, title: str, runs: Mapping[str, Path], note: str, heading: str, lists: Mapping[str, Sequence[str]]
) -> None:
    """The page of a table, with lists of titles side by side.

    Args:
      file: written by this.
      title: Heading of the page.
      runs, note: as of `markdown`.
      heading: Heading of the lists.
      lists: Name of a list to its titles.

    Raises:
      ValueError: as `markdown`.
    """
    rows = list(zip_longest(*lists.values(), fillvalue=""))
    shown = [(visible(heading), html_page.listing(list(lists), rows))]
    file.write_text(html_page.page(_statistics(runs), title, note, shown), encoding="utf-8")


def _statistics(runs: Mapping[str, Path]) -> Statistics:
    groups = {label: [finished_runs.read(folder)] for label, folder in runs.items()}
    table = Table(costs=("parameters", "time"), spread="interval")
    return statistics(table, finished_runs.RunGroups(groups, [], []), lambda text: None)
