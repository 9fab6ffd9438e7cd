"""A table as Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Sequence

import numpy as np

from experiments.reports.layout import Entry, Layout, layout
from experiments.reports.statistics import Row, Statistics

# Columns of figures with their spreads that a page of `article` has room for.
_WIDEST = 8
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
    "±": r"$\pm$",
    "†": r"$^{\dagger}$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "−": r"$-$",
    "→": r"$\rightarrow$",
    "∞": r"$\infty$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "Δ": r"$\Delta$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "λ": r"$\lambda$",
    "μ": r"$\mu$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
    "\N{NO-BREAK SPACE}": "~",
}


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Of cells that are Markdown: numbers to the right, the first column to the left."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(s: Statistics) -> str:
    """A Markdown table and its caption; the best are bold, the second underlined."""
    table = layout(s)

    def written(entry: Entry) -> str:
        text = {"best": "**{}**", "second": "<u>{}</u>"}.get(entry.style, "{}").format(_markdown(entry.text))
        return text + entry.rest + "†" * entry.marked

    rows = [[written(entry) for entry in row] for section in table.sections for row in section]
    return f"{markdown_table(table.header, rows)}\n\n{_markdown(table.caption)}\n"


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is; an underscore within a word stands for itself."""
    text = re.sub(r"\s+", " ", text).replace("<", "&lt;")
    return re.sub(r"(?<!\w)_|_(?!\w)|[\\|*`]", r"\\\g<0>", text)


def latex(s: Statistics) -> str:
    r"""A `table` environment that needs booktabs and no other package; \midrule separates the sections.

    Where it would be wider than a page of `article`, the costs are a second `tabular` below the first.
    """
    table = layout(s)
    width = len(table.header)
    split = width - table.costs if width > _WIDEST and table.costs else width
    columns = [range(split), *([[0, *range(split, width)]] if split < width else [])]
    size = r"\small\setlength{\tabcolsep}{4pt}" if split <= 6 else r"\footnotesize\setlength{\tabcolsep}{3pt}"
    label = re.sub(r"[^\w:.+/-]", "-", table.label)
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs} and no other package.",
            r"\begin{table}[t]",
            rf"\centering{size}",
            rf"\caption{{{escape_latex(table.caption)}}}",
            rf"\label{{tab:{label}}}",
            "\n\n\\medskip\n".join(_tabular(table, some) for some in columns),
            r"\end{table}",
            "",
        ]
    )


def _tabular(table: Layout, columns: Sequence[int]) -> str:
    """Some of a table's columns."""

    def written(entry: Entry) -> str:
        command = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}"}.get(entry.style, "{}")
        # A hyphen is no minus.
        text = re.sub(r"^-(?=\d)", "−", entry.text) if isinstance(entry.value, float) else entry.text
        return command.format(escape_latex(text)) + escape_latex(entry.rest + "†" * entry.marked)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells[i] for i in columns) + r" \\"

    # A published row has no costs.
    kept = [[row for row in section if any(row[i].text for i in columns[1:])] for section in table.sections]
    body = "\n\\midrule\n".join(
        "\n".join(line([written(entry) for entry in row]) for row in section) for section in kept if section
    )
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            line([escape_latex(name) for name in table.header]),
            r"\midrule",
            body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is; characters with an accent need its UTF-8, which is the default."""
    return "".join(_LATEX.get(character, character) for character in re.sub(r"[^\S\xa0]+", " ", text))


_COLUMNS: tuple[str, ...] = (
    "section", "group", "label", "kind", "name", "seeds", "users", "mean", "sd", "low", "high", "baseline",
    "difference", "difference_low", "difference_high", "change_percent", "p", "p_adjusted", "source",
)  # fmt: skip


def tidy(s: Statistics) -> str:
    """A line a row and metric (kind "test") or cost, and a published metric; full precision, no scale.

    `low` and `high` are the 95% interval over users, `difference` is to `baseline`, with its interval; what does not
    exist is empty.
    """
    lines = [line for row in s.rows for line in _lines(row)]
    for label, values, source in s.table.published:
        lines += [
            {"label": label, "kind": "published", "name": name, "mean": value, "source": source}
            for name, value in values.items()
        ]
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _lines(row: Row) -> list[dict[str, object]]:
    about = {"section": row.section, "group": row.group, "label": row.label}
    lines: list[dict[str, object]] = []
    for metric, cell in row.cells.items():
        line = {**about, "kind": "test", "name": metric, "seeds": len(row.runs), "users": row.runs[0].users}
        line |= {"mean": cell.mean, "sd": cell.sd, "baseline": cell.against, "change_percent": cell.change}
        if cell.interval is not None:
            line |= {"low": cell.interval.low, "high": cell.interval.high}
        if cell.comparison is not None:
            (difference, low, high), p, adjusted = cell.comparison
            line |= {"difference": difference, "difference_low": low, "difference_high": high}
            line |= {"p": p, "p_adjusted": adjusted}
        lines.append(line)
    costs: dict[str, list[float]] = {**row.costs, **({} if row.tried is None else {"tried": [row.tried]})}
    for name, values in costs.items():
        if values:
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
            mean = float(np.mean(values))
            lines.append({**about, "kind": "cost", "name": name, "seeds": len(values), "mean": mean, "sd": sd})
    return lines
