"""Tables and plots from run folders, and from nothing else."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import polars as pl

from experiments import run_folder
from llm4rec_jax import journal
from llm4rec_jax.significance import compare, interval

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

METRICS = ("hr@10", "ndcg@10", "mrr")


def markdown(runs: Mapping[str, Path], note: str, metrics: Sequence[str] = METRICS) -> str:
    """Test metrics of runs as a Markdown table: best in bold, with 95% intervals, parameters and time.

    Args:
      runs: label to run folder.
      note: printed below.
      metrics: columns.
    """
    header = ["model", *(name.upper() for name in metrics), "trained parameters", "time"]
    rows = _rows(runs, metrics, bold="**{}**")
    users = _users(next(iter(runs.values())))
    return f"{_markdown_table(header, rows)}\n\n{_caption(runs, users)} {note}\n"


def ablation(runs: Mapping[str, Sequence[Path]], baseline: str | None = None) -> str:
    """One row a group of runs that differ in their seed: what is trained, test metrics as mean ± sd, and cost.

    Time is the median of a step; FLOPs and memory (arguments, outputs and temporary arrays at once) are the compiler's
    count for the costliest program of the step.

    Args:
      runs: label to run folders.
      baseline: the label that the others are compared with: a column has the difference in NDCG@10, and † marks a
        metric that differs by the sign-flip test over users that were averaged over seeds, at .05 after Holm's
        adjustment for all rows and both metrics.

    Raises:
      ValueError: runs on other users.
    """
    metrics = ("ndcg@10", "hr@10")
    header = ["method", "trained in the encoder", "%", "NDCG@10", "HR@10", "s/step", "GFLOP/step", "MiB"]
    if baseline is not None:
        header.insert(4, f"less {baseline}'s")
    some = next(iter(runs.values()))[0]
    for folder in (folder for folders in runs.values() for folder in folders):
        if not _per_user(folder)["user_id"].equals(_per_user(some)["user_id"]):
            raise ValueError(f"{folder} was tested on other users than {some}; a table needs one dataset and split")
    values = {
        label: {name: np.stack([_values(folder, name) for folder in folders]) for name in metrics}
        for label, folders in runs.items()
    }
    compared = compare(values, baseline) if baseline is not None else {}
    rows = []
    for label, folders in runs.items():
        results = [run_folder.read(folder / "result.json") for folder in folders]
        first = results[0]
        share = first["parameters"]["delta"] / max(first["parameters"]["frozen"], 1)
        found = compared.get(label, {})
        marks = {name: "†" for name, comparison in found.items() if comparison.adjusted < 0.05}
        spreads = [_spread([result["test"][name] for result in results]) + marks.get(name, "") for name in metrics]
        if baseline is not None:
            spreads.insert(1, "{:+.4f} [{:+.4f}, {:+.4f}]".format(*found["ndcg@10"].difference) if found else "")
        seconds = float(np.median([result["step"]["seconds"] for result in results]))
        cost = [f"{seconds:.2f}", f"{first['step']['flops'] / 1e9:,.0f}", f"{first['step']['bytes'] / 2**20:,.0f}"]
        rows.append([label, f"{first['parameters']['delta']:,}", f"{100 * share:.2f}", *spreads, *cost])
    data = run_folder.read(some / "dataset.json")
    counts = " or ".join(str(n) for n in sorted({len(folders) for folders in runs.values()}))
    caption = f"Test, {_users(some)} users, {data['protocol']}; mean ± sd over {counts} seeds."
    if baseline is not None:
        caption += (
            f" Difference to {baseline}: 95% bootstrap interval over users. †: p < .05 by the sign-flip test over users"
            f" with Holm's adjustment for {len(metrics) * len(compared)} comparisons."
        )
    return f"{_markdown_table(header, rows)}\n\n{caption}\n"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Numbers to the right, the first column to the left."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spread(values: Sequence[float]) -> str:
    sd = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{sd}"


def page(file: Path, title: str, runs: Mapping[str, Path], note: str, lists: Mapping[str, Sequence[str]]) -> None:
    """One HTML page without outside files: table, plots, and lists of titles side by side.

    Args:
      file: written by this.
      title: the heading.
      runs: label to run folder.
      note: printed below the table.
      lists: heading to titles.
    """
    header = ["model", *(name.upper() for name in METRICS), "trained parameters", "time"]
    rows = _rows(runs, METRICS, bold="<b>{}</b>", escape=True)
    depth = max(len(column) for column in lists.values())
    columns = [list(column) + [""] * (depth - len(column)) for column in lists.values()]
    file.write_text(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: left }}
table.figures td:not(:first-child), table.figures th:not(:first-child) {{ text-align: right }}
img {{ max-width: 100% }} p.note {{ color: #555 }}
</style></head><body>
<h1>{html.escape(title)}</h1>
{_html_table(header, rows, "figures")}
<p class="note">{html.escape(_caption(runs, _users(next(iter(runs.values())))))} {html.escape(note)}</p>
<h2>Metrics, with 95% intervals</h2>{_image(_bars(runs))}
<h2>Learning curves</h2>{_image(_curves(runs))}
<h2>What accuracy costs</h2>{_image(_costs(runs))}
<h2>Recommendations</h2>
{_html_table(list(lists), [[html.escape(cell) for cell in row] for row in zip(*columns, strict=True)], "lists")}
</body></html>
""",
        encoding="utf-8",
    )


def _rows(runs: Mapping[str, Path], metrics: Sequence[str], bold: str, escape: bool = False) -> list[list[str]]:
    results = {label: run_folder.read(folder / "result.json") for label, folder in runs.items()}
    intervals = {label: {m: interval(_values(folder, m)) for m in metrics} for label, folder in runs.items()}
    best = {m: max(intervals[label][m].mean for label in runs) for m in metrics}
    rows = []
    for label, result in results.items():
        cells = [html.escape(label) if escape else label]
        for m in metrics:
            mean, low, high = intervals[label][m]
            figure = bold.format(f"{mean:.4f}") if mean == best[m] else f"{mean:.4f}"
            cells.append(f"{figure} [{low:.3f}, {high:.3f}]")
        rows.append([*cells, f"{result['parameters']['trainable']:,}", _time(result["seconds"])])
    return rows


def _caption(runs: Mapping[str, Path], users: int) -> str:
    data = run_folder.read(next(iter(runs.values())) / "dataset.json")
    return f"Test, {users} users, {data['protocol']}; mean over users [95% bootstrap interval]."


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{kind}"><tr>{head}</tr>{body}</table>'


def _bars(runs: Mapping[str, Path]) -> Figure:
    figure, axes = plt.subplots(1, len(METRICS), figsize=(9, 3.2), layout="constrained")
    for axis, metric in zip(axes, METRICS, strict=True):
        for i, folder in enumerate(runs.values()):
            mean, low, high = interval(_values(folder, metric))
            axis.bar(i, mean, color=f"C{i}")
            axis.errorbar(i, mean, [[mean - low], [high - mean]], color="#333", capsize=3)
        axis.set_title(metric.upper())
        axis.set_xticks(range(len(runs)), list(runs), rotation=30, ha="right")
    return figure


def _curves(runs: Mapping[str, Path]) -> Figure:
    figure, (by_step, by_time) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    for i, (label, folder) in enumerate(runs.items()):
        records = [r for r in journal.read(folder / "metrics.jsonl") if r["kind"] == "validation"]
        if records:
            values = [r["ndcg@10"] for r in records]
            by_step.plot([r["step"] for r in records], values, color=f"C{i}", marker=".", label=label)
            by_time.plot([r["seconds"] for r in records], values, color=f"C{i}", marker=".", label=label)
    by_step.set(xlabel="steps", ylabel="validation NDCG@10")
    by_time.set(xlabel="seconds, validation included")
    by_step.legend(fontsize="small")
    return figure


def _costs(runs: Mapping[str, Path]) -> Figure:
    figure, (by_parameters, by_time) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    for i, (label, folder) in enumerate(runs.items()):
        result = run_folder.read(folder / "result.json")
        mean, low, high = interval(_values(folder, "ndcg@10"))
        for axis, cost in ((by_parameters, result["parameters"]["trainable"]), (by_time, result["seconds"])):
            axis.errorbar(cost, mean, [[mean - low], [high - mean]], color=f"C{i}", marker="o", capsize=3, label=label)
    by_parameters.set(xlabel="trained parameters", ylabel="test NDCG@10")
    by_parameters.set_xscale("symlog", linthresh=1e4)
    by_time.set(xlabel="seconds of training")
    by_parameters.legend(fontsize="small")
    return figure


def _image(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _values(folder: Path, metric: str) -> np.ndarray:
    return _per_user(folder)[metric].to_numpy()


def _users(folder: Path) -> int:
    return len(_per_user(folder))


def _per_user(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "per_user_test.parquet")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
