"""A table as one HTML page without outside files: sortable, with plots and results by band of users."""

import html
from collections.abc import Sequence

from experiments.cli.console import visible
from experiments.reports import plots
from experiments.reports.bands import Banding, bandings, result
from experiments.reports.layout import EMPTY, Entry, bracketed, figure, layout, metric_name
from experiments.reports.statistics import Statistics

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .5rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
table.figures :is(th, td):not(:first-child) { text-align: right }
table.figures td { white-space: nowrap }
th { vertical-align: bottom }
tbody + tbody tr:first-child td { border-top: 2px solid #666 }
td small { display: block; color: #666; font-size: .8em }
th button { font: inherit; font-weight: bold; text-align: inherit; border: 0; padding: 0; background: none }
th button { color: inherit; cursor: pointer }
th button:focus-visible { outline: 2px solid #06c; outline-offset: 2px }
th[aria-sort=ascending] button::after { content: " ▲" }
th[aria-sort=descending] button::after { content: " ▼" }
img { max-width: 100% }
.note { color: #555 }
"""

# The largest first, but labels from A; what has no value stays last.
_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const now = head.getAttribute("aria-sort");
    const rising = now === "none" ? column === 0 : now === "descending";
    const key = row => row.cells[column].dataset.value;
    const order = (a, b) => column === 0 ? a.localeCompare(b) : a - b;
    const rows = [...table.tBodies].flatMap(body => [...body.rows]);
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return rising ? order(x, y) : order(y, x);
    });
    heads.forEach(other => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  }));
}
"""


def page(s: Statistics, title: str = "Results", note: str = "", more: Sequence[tuple[str, str]] = ()) -> str:
    """The page of a table.

    Args:
      s: the table's figures.
      title: the heading.
      note: follows the caption.
      more: sections at the end: heading and HTML.
    """
    table = layout(s)
    found = [
        ("95% intervals", _figure(plots.intervals(s), "Every metric of every row with its interval.")),
        ("Differences", _differences(s)),
        ("Learning curves", _figure(plots.curves(s), f"Validation {metric_name(s.main)} by step and by time.")),
        ("Accuracy by cost", _figure(plots.costs(s), "The metric by trained parameters and by time.")),
        ("By kind of user", _by_band(s)),
        *more,
        ("Runs", _runs(s)),
    ]
    sections = "\n".join(f"<h2>{html.escape(heading)}</h2>\n{body}" for heading, body in found if body)
    brackets = "" if s.table.spread == "interval" else "In brackets: 95% bootstrap intervals over users."
    caption = " ".join(text for text in (table.caption, note, brackets) if text)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
{sortable(table.header, table.sections)}
<p class="note">{html.escape(caption)} A click on a column's name sorts by it.</p>
{_notices(table.notices)}
{sections}
<script>{_SCRIPT}</script>
</body></html>
"""


def sortable(header: Sequence[str], sections: Sequence[Sequence[Sequence[Entry]]]) -> str:
    """A table of figures that a click on a column's name, or a key on it, sorts."""
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{html.escape(name)}</button></th>' for name in header
    )
    bodies = "".join(
        "<tbody>" + "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows) + "</tbody>" for rows in sections
    )
    return f'<div class="wide"><table class="figures sortable"><thead><tr>{head}</tr></thead>{bodies}</table></div>'


def _notices(notices: Sequence[str]) -> str:
    """Returns notices as a list in HTML; "" without any."""
    items = "".join(f"<li>{html.escape(notice)}</li>" for notice in notices)
    return f'<ul class="note">{items}</ul>' if items else ""


def listing(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text."""
    head = "".join(f'<th scope="col">{html.escape(visible(name))}</th>' for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(visible(cell))}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(entry: Entry) -> str:
    text = {"best": "<b>{}</b>", "second": "<u>{}</u>"}.get(entry.style, "{}").format(html.escape(entry.text))
    value = "" if entry.value is None else f' data-value="{html.escape(str(entry.value))}"'
    below = f"<small>{html.escape(entry.interval)}</small>" if entry.interval else ""
    return f"<td{value}>{text}{html.escape(entry.rest)}{'†' * entry.marked}{below}</td>"


def _figure(drawn: plots.Figure | None, says: str) -> str:
    return "" if drawn is None else plots.image(drawn, says)


def _differences(s: Statistics) -> str:
    """Returns a table of the differences to the baseline, with p."""
    if not s.comparisons:
        return ""
    tested = [m for m in s.metrics if any(row.cells[m].comparison for row in s.rows)]
    rows = []
    for row in s.rows:
        if not any(row.cells[m].comparison for m in tested):
            continue
        entries = [Entry(visible(row.label), value=visible(row.label))]
        for metric in tested:
            found = row.cells[metric].comparison
            if found is None:
                entries += [EMPTY] * 3
                continue
            mean, low, high = found.difference
            sign = "+" if mean >= 0 else ""
            text = Entry(sign + figure(s, metric, mean), value=mean, interval=bracketed(s, metric, low, high, 0))
            ps = [Entry(_p(p), value=p) for p in (found.p, found.adjusted)]
            entries += [text, *ps]
        rows.append(entries)
    header = ["model", *(name for m in tested for name in (metric_name(m), "p", "adjusted p"))]
    return sortable(header, [rows])


def _p(p: float) -> str:
    return f"{p:.4f}" if p >= 0.001 else f"{p:.1g}"


def _by_band(s: Statistics) -> str:
    runs = [run for row in s.rows for run in row.runs]
    found = bandings(runs)
    if not found or result(s.rows[0].runs, s.main, found[0].bands[0].members) is None:
        return (
            '<p class="note">Left out: the per-user results of these runs do not say how long histories are and how '
            "popular targets are (runs of older versions, and of labelled rows), or the metric has no values by user."
            "</p>"
        )
    drawn = _figure(plots.bands(s, found), f"{metric_name(s.main)} by activity and by popularity.")
    return drawn + "".join(_band_table(s, banding) for banding in found)


def _band_table(s: Statistics, banding: Banding) -> str:
    header = ["model", *(f"{band.name} (n = {band.members.sum():,})" for band in banding.bands)]
    rows = []
    for row in s.rows:
        entries = [Entry(visible(row.label), value=visible(row.label))]
        for band in banding.bands:
            found = result(row.runs, s.main, band.members)
            assert found is not None
            mean, low, high = found
            between = bracketed(s, s.main, low, high) if low == low else ""
            entries.append(Entry(figure(s, s.main, mean), value=mean, interval=between))
        rows.append(entries)
    return f"<h3>{metric_name(s.main)} by {html.escape(banding.title)}</h3>{sortable(header, [rows])}"


def _runs(s: Statistics) -> str:
    rows = [
        [row.label, str(run.config.get("seed", "")), str(run.result.get("best_step", "")), str(run.folder)]
        for row in s.rows
        for run in row.runs
    ]
    return listing(["model", "seed", "best step", "folder"], rows)
