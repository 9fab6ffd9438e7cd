"""Numbers of a table, from runs: means, spreads and intervals, comparisons with the baseline, costs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.reports.finished_runs import FinishedRun, RunGroups, check_comparable
from experiments.reports.spec import Table
from llm4rec_jax.evaluation import rating_metrics
from llm4rec_jax.evaluation.metrics import less_is_better
from llm4rec_jax.evaluation.significance import Comparison, Interval, compare, holm, interval
from llm4rec_jax.registry import unknown_name

_RANKING = ("hr@10", "ndcg@10", "mrr")

# For a p-value of the bootstrap: as many as the sign-flip test has patterns.
_RESAMPLES = 10_000


class Cell(NamedTuple):
    """A row's metric.

    Attributes:
      values: one a seed, [seeds].
      mean: over seeds.
      sd: over seeds; None of one seed.
      interval: 95%, over users that were averaged over seeds; None of a metric that has no values by user.
      against: the group that it was compared with; None if it was not.
      comparison: with that group.
      change: to that group, in percent of its mean; None where that is zero.
    """

    values: np.ndarray
    mean: float
    sd: float | None
    interval: Interval | None
    against: str | None = None
    comparison: Comparison | None = None
    change: float | None = None


class Row(NamedTuple):
    """A group of runs.

    Attributes:
      group, label, section: its names, and the section's number.
      runs: one a seed.
      cells: metric to its figures.
      costs: name to one value a run; empty where none was measured.
      tried: number of configurations tried; None if that is not known.
    """

    group: str
    label: str
    section: int
    runs: Sequence[FinishedRun]
    cells: dict[str, Cell]
    costs: dict[str, list[float]]
    tried: int | None


class Statistics(NamedTuple):
    """All that a table prints.

    Attributes:
      table: the requested table.
      metrics: test metrics, a column each.
      main: the metric of plots and of results by group.
      rows: in order.
      comparisons: number of comparisons made together.
      baselines: the groups that the others were compared with.
    """

    table: Table
    metrics: Sequence[str]
    main: str
    rows: list[Row]
    comparisons: int
    baselines: list[str]


def statistics(table: Table, found: RunGroups, warn: Callable[[str], None]) -> Statistics:
    """The figures of a table.

    Args:
      table: rows, columns and comparisons.
      found: the runs.
      warn: is told of baselines without a finished run.

    Raises:
      ValueError: runs that cannot be compared, and names of groups or metrics that do not exist.
    """
    known = [*found.groups, *found.unfinished]
    sections = [{group: group for group in found.groups}] if table.rows is None else table.rows
    baselines = (
        [] if table.baseline is None else [table.baseline] if isinstance(table.baseline, str) else table.baseline
    )
    for kind, names in (
        ("group of rows", [group for section in sections for group in section]),
        ("group of baseline", baselines),
        ("group of tried", table.tried),
    ):
        for group in names:
            if group not in known:
                raise ValueError(unknown_name(kind, group, known))
    sections = [{g: label for g, label in section.items() if g in found.groups} for section in sections]
    groups = {group: found.groups[group] for section in sections for group in section}
    if not groups:
        raise ValueError(f"no row of the table has a finished run; there are: {', '.join(found.groups)}")
    runs = [run for own in groups.values() for run in own]
    check_comparable(runs)
    metrics, main = _metrics(table, runs)
    for group in [group for group in baselines if group not in groups]:
        warn(f"the baseline {group} has no finished run among the rows; nothing is compared with it")
    baselines = [group for group in baselines if group in groups]
    cells = {group: {m: _cell(own, m) for m in metrics} for group, own in groups.items()}
    comparisons = _compare(groups, cells, baselines) if baselines else 0
    rows = [
        Row(group, label, i, groups[group], cells[group], _costs(groups[group], table.costs), table.tried.get(group))
        for i, section in enumerate(sections)
        for group, label in section.items()
    ]
    return Statistics(table, metrics, main, rows, comparisons, baselines)


def _metrics(table: Table, runs: Sequence[FinishedRun]) -> tuple[Sequence[str], str]:
    """Returns the metrics of a table, and its main one; where none are named, those that all runs have."""
    metrics = table.metrics
    common = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    if metrics is None:
        usual = ["auc"] if runs[0].pointwise else [name for name in _RANKING if name in common]
        metrics = usual or common[:3]
    main = table.main or ("ndcg@10" if "ndcg@10" in metrics else metrics[0])
    named = [*metrics, main, *(name for _, values, _ in table.published for name in values)]
    for name in named:
        if lacking := [run.folder for run in runs if name in runs[0].metrics and name not in run.metrics]:
            raise ValueError(f"metric {name!r}: {lacking[0]} has none; leave the metric or the row out")
        if name not in common:
            raise ValueError(unknown_name("metric", name, common))
    return metrics, main


def by_user(runs: Sequence[FinishedRun], metric: str) -> np.ndarray | None:
    """A metric by seed and user, [seeds, E]; None of one that has no values by user."""
    values = [run.values(metric) for run in runs]
    found = [own for own in values if own is not None]
    return np.stack(found) if found else None


def _rows(runs: Sequence[FinishedRun]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns scores [seeds, n], labels [n] and users [n] of labelled rows."""
    return rating_metrics.samples([run.tested for run in runs])


def _cell(runs: Sequence[FinishedRun], metric: str) -> Cell:
    values = np.array([run.result["test"][metric] for run in runs], np.float64)
    spread = None
    if runs[0].pointwise and metric == "auc":
        spread = rating_metrics.clustered_interval(*_rows(runs))
    elif (users := by_user(runs, metric)) is not None:
        # One user alone has no interval.
        spread = interval(users.mean(0)) if users.shape[1] > 1 else None
    return Cell(values, float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, spread)


def _compare(
    groups: Mapping[str, Sequence[FinishedRun]], cells: dict[str, dict[str, Cell]], baselines: Sequence[str]
) -> int:
    """Puts comparisons with the best of the baselines in each metric into the cells, and counts them."""
    others = [group for group in groups if group not in baselines]
    best = {
        metric: (min if less_is_better(metric) else max)(baselines, key=lambda group: cells[group][metric].mean)
        for metric in cells[baselines[0]]
    }
    made: dict[tuple[str, str], Comparison] = {}
    first = next(iter(groups.values()))[0]
    values = {metric: {group: by_user(groups[group], metric) for group in groups} for metric in best}
    # A test needs two users at least.
    tested = [m for m in best if values[m][baselines[0]] is not None and first.users > 1]
    if others and tested:
        # Nothing else is called by the empty name.
        models: dict[str, dict[str, Any]] = {"": {metric: values[metric][best[metric]] for metric in tested}}
        models |= {group: {metric: values[metric][group] for metric in tested} for group in others}
        found = compare(models, "")
        made = {(group, metric): found[group][metric] for group in others for metric in tested}
    elif others and first.pointwise and "auc" in best:
        base, labels, users = _rows(groups[best["auc"]])
        pairs = [
            rating_metrics.clustered_difference(_rows(groups[group])[0], base, labels, users, resamples=_RESAMPLES)
            for group in others
        ]
        for group, pair, adjusted in zip(others, pairs, holm(np.array([pair.p for pair in pairs])), strict=True):
            made[group, "auc"] = Comparison(pair.difference, pair.p, float(adjusted))
    for group in others:
        for metric, cell in cells[group].items():
            base = cells[best[metric]][metric].mean
            change = 100 * (cell.mean - base) / base if base else None
            cells[group][metric] = cell._replace(
                against=best[metric], comparison=made.get((group, metric)), change=change
            )
    return len(made)


def _costs(runs: Sequence[FinishedRun], names: Sequence[str]) -> dict[str, list[float]]:
    found = [_costs_of(run) for run in runs]
    return {name: [own[name] for own in found if own[name] is not None] for name in names}


def _costs_of(run: FinishedRun) -> dict[str, Any]:
    parameters, step = run.result["parameters"], run.result.get("step") or {}
    # A model without a compiled step was fitted in closed form.
    step = step if step.get("programs") else {}
    frozen, delta = parameters.get("frozen"), parameters.get("delta", 0)
    return {
        "parameters": parameters.get("trainable"),
        "delta": delta,
        "share": 100 * delta / frozen if frozen else None,
        "step": step.get("seconds"),
        "gflop": step["flops"] / 1e9 if "flops" in step else None,
        "memory": step["bytes"] / 2**20 if "bytes" in step else None,
        "time": run.result["seconds"],
    }
