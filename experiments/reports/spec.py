"""The `Table` that a configuration file's `table()` may return: rows, columns and comparisons."""

import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm4rec_jax.registry import unknown_name

# Costs of a run, and their names in a table's header.
COSTS = {
    "parameters": "trained parameters",
    "delta": "trained in the encoder",
    "share": "% of the encoder",
    "step": "s/step",
    "gflop": "GFLOP/step",
    "memory": "MiB",
    "time": "time",
}


class Table(NamedTuple):
    """Contents of a table. Every field has a default, so `Table()` is the table of all groups.

    Attributes:
      rows: sections of rows, each {group: label}, in order; a line separates sections. None: all groups, as listed.
      metrics: test metrics, a column each. None: HR@10, NDCG@10 and MRR of runs that rank, the AUC of those that don't.
      costs: cost columns: parameters, delta, share, step, gflop, memory, time.
      tried: group to how many configurations were tried for it on validation; a column when there is one.
      baseline: the group that the others are compared with; or several, of which the best in each metric is it, and
        whose own rows are not compared. None: no comparisons.
      changes: a column beside each metric has the change to the baseline in percent.
      spread: "sd" over seeds, or "interval", the 95% bootstrap interval over users.
      published: rows (label, {metric: value}, source) that others printed, on the scale of the runs' own metrics.
      main: the metric of plots and of results by group; None: NDCG@10 if it is a column, else the first.
      caption: comes before what the table says of itself.
      label: name for references in LaTeX; `tab:` is put before it.
      scale: 1, or 100 for metrics that are shares.
      digits: after the point; None: 4 at scale 1, 2 at scale 100.
    """

    rows: Sequence[Mapping[str, str]] | None = None
    metrics: Sequence[str] | None = None
    costs: Sequence[str] = ("parameters", "share", "step", "gflop", "memory", "time")
    tried: Mapping[str, int] = {}
    baseline: str | Sequence[str] | None = None
    changes: bool = True
    spread: str = "sd"
    published: Sequence[tuple[str, Mapping[str, float], str]] = ()
    main: str | None = None
    caption: str = ""
    label: str = "results"
    scale: int = 1
    digits: int | None = None


def load_table(file: Path) -> Table:
    """Runs a configuration file and returns the table of its `table()`; without one, all groups against its BASELINE.

    Raises:
      ValueError: no such file, or a table that cannot be made.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist; --spec names a configuration file that has a function table()")
    module: dict[str, Any] = runpy.run_path(str(file))
    table = module["table"]() if "table" in module else Table()
    if not isinstance(table, Table):
        raise ValueError(f"{file}: table() returns {type(table).__name__}; it must return an experiments.tables.Table")
    if table.baseline is None and "BASELINE" in module:
        table = table._replace(baseline=module["BASELINE"])
    try:
        return checked(table)
    except ValueError as error:
        raise ValueError(f"{file}: table(): {error}") from error


def checked(table: Table) -> Table:
    """The same table.

    Raises:
      ValueError: a field whose value makes no sense whatever the runs; the message names it.
    """
    if table.rows is not None:
        sections = [] if isinstance(table.rows, (str, Mapping)) else list(table.rows)
        if not sections or not all(isinstance(section, Mapping) and section for section in sections):
            raise ValueError(f"rows is {table.rows!r}; it must be sections, each {{group: label}}: ({{'a': 'A'}},)")
        groups = [group for section in sections for group in section]
        if twice := sorted({group for group in groups if groups.count(group) > 1}):
            raise ValueError(f"rows has {', '.join(twice)} twice")
    if table.metrics is not None and (isinstance(table.metrics, str) or not table.metrics):
        raise ValueError(f"metrics is {table.metrics!r}; it must be a sequence of metrics, such as ('ndcg@10',)")
    for cost in table.costs:
        if cost not in COSTS:
            raise ValueError(unknown_name("cost", cost, COSTS))
    if table.baseline is not None and not table.baseline:
        raise ValueError("baseline is empty; it must be a group, several of them, or None")
    if table.spread not in ("sd", "interval"):
        raise ValueError(unknown_name("spread", table.spread, ("sd", "interval")))
    if table.scale not in (1, 100):
        raise ValueError(f"scale is {table.scale}, must be 1 or 100")
    if table.digits is not None and not 0 <= table.digits <= 9:
        raise ValueError(f"digits is {table.digits}, must be between 0 and 9")
    return table
