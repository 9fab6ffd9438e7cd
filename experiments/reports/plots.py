"""A table's plots: intervals, learning curves, what accuracy costs, results by band of users."""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from experiments.reports.bands import Banding, result
from experiments.reports.layout import factor, metric_name
from experiments.reports.statistics import Row, Statistics
from llm4rec_jax.io import replacing
from llm4rec_jax.training import metric_writer

# The colours of Okabe and Ito, which the colour-blind tell apart, without the yellow, which is faint on white. Seven
# colours and thirteen markers give 91 pairs.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = "os^DvPX*<>phd"
_LINES = ("-", "--", ":", "-.")
_BARS_UP_TO = 8


def _style(i: int) -> dict[str, Any]:
    return {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)]}


def image(figure: Figure, says: str) -> str:
    """A figure as an `img` element that holds it, with what it says for those who do not see it."""
    buffer = io.StringIO()
    # The same runs give the same page.
    with matplotlib.rc_context({"svg.hashsalt": "llm4rec_jax"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue().encode()).decode()
    return f'<img alt="{html.escape(says)}" src="data:image/svg+xml;base64,{data}">'


def write_pdf(figure: Figure, file: Path) -> None:
    """Writes a figure as a PDF for papers, with its fonts embedded as TrueType, as publishers want them."""
    with matplotlib.rc_context({"pdf.fonttype": 42}), replacing(file) as scratch:
        figure.savefig(scratch, format="pdf", metadata={"CreationDate": None})


def intervals(s: Statistics) -> Figure:
    """Every metric of every row, with its 95% interval."""
    count = len(s.metrics)
    figure = Figure(figsize=(2.5 + 2.6 * count, 1.2 + 0.27 * len(s.rows)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, count, sharey=True))
    for axis, metric in zip(panels, s.metrics, strict=True):
        for i, row in enumerate(s.rows):
            mean, bars = _with_bars(s, row, metric)
            axis.errorbar(mean, i, xerr=bars, capsize=3, linestyle="", **_style(i))
        axis.set_title(metric_name(metric))
        axis.grid(axis="x", color="#ddd")
    panels[0].set_yticks(range(len(s.rows)), [_plain(row.label) for row in s.rows])
    panels[0].set_ylim(len(s.rows) - 0.4, -0.6)
    return figure


def curves(s: Statistics) -> Figure | None:
    """Validation by step and by time, averaged over seeds; None where no run has recorded any."""
    drawn = {i: found for i, row in enumerate(s.rows) if len(found := _validation(row, s.main))}
    if not drawn:
        return None
    figure, (by_step, by_time) = _panels(s)
    for i, points in drawn.items():
        steps, seconds, values = points.T
        line = _LINES[i // len(_COLOURS) % len(_LINES)]
        values = values * factor(s, s.main)
        by_step.plot(steps, values, linestyle=line, markersize=4, label=_plain(s.rows[i].label), **_style(i))
        by_time.plot(seconds, values, linestyle=line, markersize=4, **_style(i))
    by_step.set(xlabel="steps", ylabel=f"validation {metric_name(s.main)}")
    by_time.set(xlabel="seconds, validation included")
    _short_and_long(by_step, [points[-1, 0] for points in drawn.values()])
    _short_and_long(by_time, [points[-1, 1] for points in drawn.values()])
    _legend(figure, by_step, len(drawn))
    return figure


def costs(s: Statistics) -> Figure | None:
    """The main metric against trained parameters and against time, with 95% intervals."""
    if s.main not in s.rows[0].cells:
        return None
    figure, (by_parameters, by_time) = _panels(s)
    for i, row in enumerate(s.rows):
        mean, bars = _with_bars(s, row, s.main)
        made = [run.result for run in row.runs]
        for axis, found in (
            (by_parameters, [own["parameters"]["trainable"] for own in made]),
            (by_time, [own["seconds"] for own in made]),
        ):
            style = {"linestyle": "", "elinewidth": 0.7, "label": _plain(row.label), **_style(i)}
            axis.errorbar(float(np.mean(found)), mean, yerr=bars, capsize=2, **style)
    by_parameters.set(xlabel="trained parameters", ylabel=f"test {metric_name(s.main)}")
    by_parameters.set_xscale("symlog", linthresh=1e3)
    # Whole decades, so that there are numbers on the axis however alike the rows are.
    trained = [run.result["parameters"]["trainable"] for row in s.rows for run in row.runs]
    most = max(10 ** np.ceil(np.log10(max(*trained, 1e3) * 1.05)), 1e4)
    least = 0 if min(trained) < 1e3 else 10 ** np.floor(np.log10(min(trained)))
    by_parameters.set_xlim(least or -300, most)
    by_parameters.set_xticks([x for x in (0, *10.0 ** np.arange(3, 13)) if least <= x <= most])
    by_time.set(xlabel="seconds in all")
    seconds = [run.result["seconds"] for row in s.rows for run in row.runs]
    by_time.set_xscale("log")
    by_time.set_xlim(min(seconds) / 1.5, max(seconds) * 1.5)
    by_time.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    by_time.xaxis.set_major_formatter("{x:g}")
    by_time.xaxis.set_minor_locator(NullLocator())
    _legend(figure, by_parameters, len(s.rows))
    return figure


def bands(s: Statistics, bandings: Sequence[Banding]) -> Figure:
    """The main metric by bands of users; intervals only where there are few rows."""
    figure, panels = _panels(s)
    for axis, banding in zip(panels, bandings, strict=True):
        places = np.arange(len(banding.bands))
        for i, row in enumerate(s.rows):
            found = np.array([result(row.runs, s.main, band.members) for band in banding.bands], float)
            mean, low, high = found.T * factor(s, s.main)
            shifted = places + 0.3 * (i / max(len(s.rows) - 1, 1) - 0.5) if len(s.rows) <= _BARS_UP_TO else places
            bars = [mean - low, high - mean] if len(s.rows) <= _BARS_UP_TO else None
            line = _LINES[i // len(_COLOURS) % len(_LINES)]
            style = {"linestyle": line, "linewidth": 0.8, "markersize": 4, "label": _plain(row.label), **_style(i)}
            axis.errorbar(shifted, mean, yerr=bars, capsize=3, **style)
        axis.set_xticks(places, [band.name for band in banding.bands], rotation=20)
        axis.set_xlabel(banding.title)
    panels[0].set_ylabel(f"test {metric_name(s.main)}")
    _legend(figure, panels[0], len(s.rows))
    return figure


def _panels(s: Statistics) -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(11, max(4.0, 1.0 + 0.2 * min(len(s.rows), 30))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axis in (left, right):
        axis.grid(color="#eee")
    return figure, (left, right)


def _short_and_long(axis: Axes, ends: Sequence[float]) -> None:
    """Makes an axis logarithmic beyond the shortest curve if the longest is several times as long."""
    shortest = min((end for end in ends if end > 0), default=np.inf)
    if 4 * shortest < max(ends):
        axis.set_xscale("symlog", linthresh=shortest)
        axis.set_xlabel(f"{axis.get_xlabel()} (logarithmic beyond {shortest:.3g})")
        axis.xaxis.set_major_formatter("{x:g}")


def _legend(figure: Figure, axis: Axes, rows: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small", ncols=1 + rows // 31)


def _with_bars(s: Statistics, row: Row, metric: str) -> tuple[float, np.ndarray | None]:
    """A mean, and how far its interval reaches to both sides [2, 1]; None without one."""
    cell, times = row.cells[metric], factor(s, metric)
    if cell.interval is None:
        return cell.mean * times, None
    reach = np.array([[cell.mean - cell.interval.low], [cell.interval.high - cell.mean]]) * times
    # A bootstrap's interval may miss the mean by rounding.
    return cell.mean * times, np.maximum(reach, 0)


def _validation(row: Row, metric: str) -> np.ndarray:
    """[points, 3]: step, seconds and value, each the mean over the seeds that have them all."""
    runs = [dict(_points(run.folder / "metrics.jsonl", metric)) for run in row.runs]
    common = [step for step in runs[0] if all(step in run for run in runs)]
    return np.array([(step, *np.mean([run[step] for run in runs], axis=0)) for step in common])


def _points(file: Path, metric: str) -> Iterator[tuple[int, tuple[float, float]]]:
    for record in metric_writer.read(file):
        if record["kind"] == "validation" and metric in record:
            yield record["step"], (record["seconds"], record[metric])


def _plain(label: str) -> str:
    """A label that Matplotlib does not read as a formula, nor leaves out of a legend."""
    label = "".join(character if character.isprintable() else "?" for character in label)
    return label.replace("$", r"\$").lstrip("_") or label
