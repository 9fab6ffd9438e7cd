"""A table as Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Sequence

import numpy as np

from experiments.cli.console import visible
from experiments.reports.layout import Entry, Layout, layout, notices
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
    """Returns a table of cells in Markdown: the first column to the left, others to the right.

    Example:
      >>> print(markdown_table(["model", "MRR"], [["id", "0.1"]]))
      | model | MRR |
      | --- | ---: |
      | id | 0.1 |
    """
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(s: Statistics) -> str:
    """A Markdown table and its caption; the best are bold, the second underlined."""
    table = layout(s)

    def written(entry: Entry) -> str:
        text = {"best": "**{}**", "second": "<u>{}</u>"}.get(entry.style, "{}").format(escape_markdown(entry.text))
        return text + entry.rest + "†" * entry.marked

    rows = [[written(entry) for entry in row] for section in table.sections for row in section]
    listed = "".join(f"\n- {escape_markdown(notice)}" for notice in table.notices)
    return f"{markdown_table(table.header, rows)}\n\n{escape_markdown(table.caption)}\n" + (listed and f"{listed}\n")


def escape_markdown(text: str) -> str:
    r"""Returns text that Markdown shows as it is: no emphasis, link, image, HTML, heading or list.

    An underscore within a word stands for itself.

    Example:
      >>> escape_markdown("![id_x](http://a) <b> & &lt; _this_ [1]")
      '![id_x\\](http://a) &lt;b> & &amp;lt; \\_this\\_ [1]'
      >>> escape_markdown("# 1"), escape_markdown("1. a")
      ('\\# 1', '1\\. a')
    """
    text = re.sub(r"&(?=#?\w+;)", "&amp;", re.sub(r"\s+", " ", text)).replace("<", "&lt;")
    text = re.sub(r"(?<!\w)_|_(?!\w)|[\\|*`]|~(?=\S)|(?<=\S)~|\](?=[(\[:])", r"\\\g<0>", text)
    return re.sub(r"^( *\d*)(>|[#+.)=-](?=[\s#=-]|$))", r"\1\\\2", text)


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
            *(rf"\par\smallskip{{\footnotesize {escape_latex(notice)}\par}}" for notice in table.notices),
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
        # After \\ and \midrule LaTeX reads [ as an option, and * as another command.
        return re.sub(r"^(?=[\[*])", "{}", " & ".join(cells[i] for i in columns)) + r" \\"

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
    r"""Returns text that LaTeX prints as it is; characters with an accent need its UTF-8, which is the default.

    Example:
      >>> escape_latex("50% of id_1 ± 2")
      '50\\% of id\\_1 $\\pm$ 2'
    """
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
    lines += [{"kind": "notice", "source": notice} for notice in notices(s)]
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in line.items()} for line in lines)
    return out.getvalue()


def csv_cell(value: object) -> object:
    """Returns a cell that a spreadsheet does not compute: text that would be a formula gets a quote before it.

    Example:
      >>> csv_cell("=1+1"), csv_cell("lora"), csv_cell(-0.5)
      ("'=1+1", 'lora', -0.5)
    """
    if not isinstance(value, str):
        return value
    text = visible(value, keep="\t\n")
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


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
