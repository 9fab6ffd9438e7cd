"""The cells of a table and what it says of itself, before Markdown, LaTeX or HTML write them their way."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.cli.console import visible
from experiments.reports.spec import COSTS
from experiments.reports.statistics import Cell, Row, Statistics
from llm4rec_jax.evaluation.metrics import less_is_better

# Metrics that are no shares of one, which a scale of 100 leaves as they are; a cut-off may follow.
_NO_SHARES = ("mean_rank", "rmse", "mae", "log_loss", "novelty", "mean_popularity")
_LEVEL = 0.05


class Entry(NamedTuple):
    """A cell.

    Attributes:
      text: the figure, or a row's label.
      rest: text that follows it: the spread.
      style: "best", "second" or none of them.
      marked: whether it differs from the baseline.
      value: key by which a column is sorted; None sorts last.
      interval: the 95% interval, which only HTML shows beside the rest.
    """

    text: str
    rest: str = ""
    style: str = ""
    marked: bool = False
    value: float | str | None = None
    interval: str = ""


EMPTY = Entry("")


class Layout(NamedTuple):
    """Attributes:
    header: of the columns; the first has the labels, to the left, and the others figures, to the right.
    sections: rows by section, separated by a line.
    caption: sentences about the table.
    label: for references to it.
    costs: number of columns, the last ones, that are costs.
    notices: unusual properties of the runs' data, a sentence each.
    """

    header: list[str]
    sections: list[list[list[Entry]]]
    caption: str
    label: str
    costs: int
    notices: list[str]


def layout(s: Statistics) -> Layout:
    """The table of some statistics: a section of published rows if there are any, then the runs' own."""
    table = s.table
    header = ["model"]
    for metric in s.metrics:
        header += [metric_name(metric), "Δ%"] if _changes(s) else [metric_name(metric)]
    costs = [COSTS[cost] for cost in table.costs] + ["tried"] * bool(table.tried)
    ranking = {metric: _ranking(s.rows, metric) for metric in s.metrics}
    sections = [_published(s)] if table.published else []
    for number in dict.fromkeys(row.section for row in s.rows):
        rows = [row for row in s.rows if row.section == number]
        sections.append([_entries(s, row, ranking) for row in rows])
    sections = [[[_visible(entry) for entry in row] for row in section] for section in sections]
    return Layout(header + costs, sections, visible(_caption(s), keep="\t\n"), table.label, len(costs), notices(s))


def notices(s: Statistics) -> list[str]:
    """Returns the notices of the runs' results, each once, with the rows that have it unless all do."""
    labels: dict[str, list[str]] = {}
    for row in s.rows:
        told = [notice for run in row.runs for notice in run.result.get("notices") or ()]
        for text in dict.fromkeys(f"{notice['message']} ({notice['key']})" for notice in told):
            labels.setdefault(text, []).append(row.label)
    return [
        visible(text if len(rows) == len(s.rows) else f"{', '.join(rows)}: {text}") for text, rows in labels.items()
    ]


def _visible(entry: Entry) -> Entry:
    value = visible(entry.value) if isinstance(entry.value, str) else entry.value
    return entry._replace(text=visible(entry.text, keep="\t\n"), value=value)


def metric_name(metric: str) -> str:
    """Returns a metric's name for a header.

    Example:
      >>> metric_name("mean_rank")
      'MEAN RANK'
    """
    return metric.upper().replace("_", " ")


def factor(s: Statistics, metric: str) -> int:
    """Returns the factor that a metric is multiplied by."""
    return 1 if metric.split("@")[0] in _NO_SHARES else s.table.scale


def figure(s: Statistics, metric: str, value: float, less: int = 0) -> str:
    """Returns a metric's value at the table's scale, with `less` digits fewer than usual."""
    digits = s.table.digits if s.table.digits is not None else (2 if s.table.scale == 100 else 4)
    return f"{value * factor(s, metric):.{max(digits - less, 0)}f}"


def bracketed(s: Statistics, metric: str, low: float, high: float, less: int = 1) -> str:
    """An interval; that of a mean needs a digit less than it."""
    return f"[{figure(s, metric, low, less)}, {figure(s, metric, high, less)}]"


def _changes(s: Statistics) -> bool:
    return s.table.changes and any(cell.against for row in s.rows for cell in row.cells.values())


def _ranking(rows: Sequence[Row], metric: str) -> dict[str, str]:
    """Group to "best" or "second"; equal values share a place, and a single row has none."""
    values = np.array([row.cells[metric].mean for row in rows])
    places = np.unique(values if less_is_better(metric) else -values, return_inverse=True)[1]
    styles = {0: "best", 1: "second"} if len(rows) > 1 else {}
    return {row.group: styles.get(int(place), "") for row, place in zip(rows, places, strict=True)}


def _entries(s: Statistics, row: Row, ranking: dict[str, dict[str, str]]) -> list[Entry]:
    entries = [Entry(row.label, value=row.label)]
    for metric in s.metrics:
        cell = row.cells[metric]
        found, between = cell.comparison, cell.interval
        shown = "" if between is None else bracketed(s, metric, between.low, between.high)
        entries.append(
            Entry(
                figure(s, metric, cell.mean),
                (f" {shown}" if shown else "") if s.table.spread == "interval" else _sd(s, metric, cell),
                ranking[metric][row.group],
                found is not None and found.adjusted < _LEVEL,
                cell.mean,
                "" if s.table.spread == "interval" else shown,
            )
        )
        if _changes(s):
            entries.append(EMPTY if cell.change is None else Entry(f"{cell.change:+.1f}", value=cell.change))
    entries += [_cost(cost, row.costs[cost]) for cost in s.table.costs]
    if s.table.tried:
        entries.append(EMPTY if row.tried is None else Entry(f"{row.tried:,}", value=row.tried))
    return entries


def _published(s: Statistics) -> list[list[Entry]]:
    rows = []
    for label, values, source in s.table.published:
        number = _sources(s).index(source) + 1
        entries = [Entry(f"{label} (published [{number}])", value=label)]
        for metric in s.metrics:
            value = values.get(metric)
            entries.append(EMPTY if value is None else Entry(figure(s, metric, value), value=value))
            entries += [EMPTY] * _changes(s)
        rows.append([*entries, *[EMPTY] * (len(s.table.costs) + bool(s.table.tried))])
    return rows


def _sources(s: Statistics) -> list[str]:
    return list(dict.fromkeys(source for _, _, source in s.table.published))


def _sd(s: Statistics, metric: str, cell: Cell) -> str:
    return "" if cell.sd is None else f" ± {figure(s, metric, cell.sd)}"


def _cost(name: str, values: Sequence[float]) -> Entry:
    if not values:
        return EMPTY
    mean = float(np.mean(values))
    written = {"share": f"{mean:.2f}", "step": f"{mean:.2f}", "time": _time(mean)}
    return Entry(written.get(name, f"{mean:,.0f}"), value=mean)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _caption(s: Statistics) -> str:
    run, labels = s.rows[0].runs[0], {row.group: row.label for row in s.rows}
    counts = sorted({len(row.runs) for row in s.rows})
    seeds = f"{' or '.join(map(str, counts))} {'seed' if counts == [1] else 'seeds'}"
    tested = f"{run.users:,} users" + (f" with {len(run.tested):,} labels" if run.pointwise else "")
    said = [f"Test, {tested}, {run.data['name']}, {run.data['protocol']}."]
    if s.table.spread == "interval":
        over = "users" if counts == [1] else "users, each averaged over seeds"
        said.append(f"Mean over {seeds} [95% bootstrap interval over {over}].")
    else:
        said.append(f"Mean{' ± sd' if counts != [1] else ''} over {seeds}.")
    if less := [metric_name(metric) for metric in s.metrics if less_is_better(metric)]:
        said.append(f"{', '.join(less)}: less is better.")
    if s.table.scale != 1:
        said.append(f"Shares are multiplied by {s.table.scale}.")
    if len(s.rows) > 1:
        said.append("Bold: best; underlined: second.")
    if s.comparisons or _changes(s):
        names = [labels[group] for group in s.baselines]
        base = names[0] if len(names) == 1 else f"the best of {', '.join(names)} in each metric"
        if _changes(s):
            said.append(f"Δ%: change to {base}.")
        how = "the bootstrap over users" if run.pointwise else "the sign-flip test over users averaged over seeds"
        if s.comparisons:
            said.append(
                f"†: differs from {base}, p below .05 by {how} with Holm's adjustment for {s.comparisons} comparisons."
            )
    if s.table.tried:
        said.append("Tried: configurations that were compared on validation.")
    if s.table.published:
        sources = "; ".join(f"[{i}] {source}" for i, source in enumerate(_sources(s), 1))
        said.append(f"Published figures, which were neither computed nor tested here: {sources}.")
    return " ".join([s.table.caption.strip(), *said]).strip()
