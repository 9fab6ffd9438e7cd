"""A table's Markdown, LaTeX, CSV and HTML."""

import html.parser
import re
import shutil
import subprocess

import polars as pl
import pytest

from experiments.reports import finished_runs, plots
from experiments.reports import quickstart as report
from experiments.reports.page import page
from experiments.reports.render import escape_latex, latex, markdown, tidy
from experiments.reports.spec import Table
from experiments.reports.statistics import statistics
from tests.helpers import made_up_runs

TABLE = Table(
    rows=({"base": "base_1 & co"}, {"lora": "LoRA, 50% | #1", "dora": "DoRA ~ {x}^2 \\ <b>"}),
    metrics=("hr@10", "ndcg@10", "mean_rank", "coverage@20"),
    tried={"lora": 12},
    baseline="base",
    published=[("SASRec$", {"ndcg@10": 0.9, "hr@10": 0.8}, "A & B 2018"), ("GRU", {"ndcg@10": 0.1}, "A & B 2018")],
    caption="Toys_1.",
    scale=100,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    workdir = made_up_runs.sweep(tmp_path_factory.mktemp("formats") / "sweep", base=0.0, lora=0.1, dora=0.01)
    return finished_runs.find([workdir], pytest.fail)


@pytest.fixture(scope="module")
def made(found):
    return statistics(TABLE, found, pytest.fail)


def cells(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown(made):
    header, rule, *rows = cells(markdown(made))
    assert header[:9] == ["model", "HR@10", "Δ%", "NDCG@10", "Δ%", "MEAN RANK", "Δ%", "COVERAGE@20", "Δ%"]
    assert header[9:] == ["trained parameters", "% of the encoder", "s/step", "GFLOP/step", "MiB", "time", "tried"]
    assert rule == ["---"] + ["---:"] * 15
    assert {len(row) for row in rows} == {16}
    assert rows[0][:4] == ["SASRec$ (published [1])", "80.00", "", "90.00"]
    assert rows[2][0] == "base_1 & co"
    assert rows[3][0] == r"LoRA, 50% \| #1"
    row = {r.group: r for r in made.rows}["lora"]
    cell = row.cells["ndcg@10"]
    # The published 90 is larger, and no rival.
    assert rows[3][3] == f"**{100 * cell.mean:.2f}** ± {100 * cell.sd:.2f}†"
    assert rows[3][4] == f"{cell.change:+.1f}"
    # Ranks are no shares: not scaled, and the smallest is best.
    assert rows[3][5].startswith(f"**{row.cells['mean_rank'].mean:.2f}**")
    assert rows[4][5].startswith("<u>")
    assert rows[3][9:] == ["1,500", "2.50", "0.25", "3", "2", "30 s", "12"]
    caption = markdown(made).splitlines()[-1]
    assert caption.startswith("Toys_1. Test, 60 users, toys, leave-one-out. Mean ± sd over 2 seeds.")
    assert "MEAN RANK: less is better" in caption
    assert "Δ%: change to base_1 & co. †: differs from base_1 & co" in caption
    assert "Holm's adjustment for 6 comparisons" in caption
    assert caption.endswith("neither computed nor tested here: [1] A & B 2018.")


def test_equal_values_share_a_place_and_one_row_has_none(tmp_path):
    runs = [
        made_up_runs.run(tmp_path / name, better=better, rank=name)
        for name, better in zip("abc", (1, 1, 0), strict=True)
    ]
    found = finished_runs.find(runs, pytest.fail)
    rows = cells(markdown(statistics(Table(metrics=("ndcg@10",), costs=()), found, pytest.fail)))[2:]
    assert [row[1][:3] for row in rows] == ["**1", "**1", "<u>"]
    one = markdown(statistics(Table(rows=({"a": "a"},), metrics=("ndcg@10",)), found, pytest.fail))
    assert "**" not in one
    assert "Bold" not in one
    assert "Mean over 1 seed." in one


def tabulars(text):
    found = re.findall(r"\\begin\{tabular\}\{(l?r*)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL)
    return [(columns, [line for line in body.splitlines() if line.endswith(r"\\")], body) for columns, body in found]


@pytest.mark.parametrize("table", [TABLE, TABLE._replace(costs=(), tried={}, changes=False), Table(spread="interval")])
def test_latex_is_balanced_and_every_row_has_every_column(found, table):
    text = latex(statistics(table, found, pytest.fail))
    bare = re.sub(r"\\[\\{}&%$#_]", "", text)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    assert re.findall(r"\\usepackage\{(\w+)\}", text) == ["booktabs"]
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}")
    for columns, lines, _ in tabulars(text):
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(columns) - 1}


def test_latex_separates_sections_and_splits_what_is_too_wide(made, found):
    accuracy, costs = tabulars(latex(made))
    assert accuracy[2].count(r"\midrule") == 3
    assert r"\textbf{" in accuracy[2]
    assert r"\underline{" in accuracy[2]
    assert r"base\_1 \& co" in accuracy[1][3]
    assert len(accuracy[1]) == 6
    # Published rows have no costs.
    assert len(costs[1]) == 4
    (one,) = tabulars(latex(statistics(TABLE._replace(costs=("time",), changes=False, tried={}), found, pytest.fail)))
    assert one[0] == "lrrrrr"


def test_latex_escapes_what_is_special():
    assert escape_latex("a_b & 5% #1 $x {y} ~ ^ \\") == (
        r"a\_b \& 5\% \#1 \$x \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert escape_latex("± † × < – é\n") == r"$\pm$ $^{\dagger}$ $\times$ \textless{} -- é "


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(made, tmp_path):
    everything = made._replace(table=made.table._replace(caption='\\ { } $ & # _ % ~ ^ < > | " ± † × ≤ ≥ − – … é α Δ'))
    text = latex(everything)
    document = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + text + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "t.pdf").stat().st_size > 10_000


def test_csv_has_full_precision(made):
    table = pl.read_csv(tidy(made).encode())
    rows = {row.group: row for row in made.rows}
    line = table.row(by_predicate=(pl.col("group") == "lora") & (pl.col("name") == "ndcg@10"), named=True)
    cell = rows["lora"].cells["ndcg@10"]
    assert (line["mean"], line["sd"]) == (cell.mean, cell.sd)
    assert (line["low"], line["high"]) == cell.interval[1:]
    assert (line["difference"], line["p"], line["p_adjusted"]) == (
        cell.comparison.difference.mean,
        *cell.comparison[1:],
    )
    assert (line["seeds"], line["users"], line["baseline"]) == (2, 60, "base")
    assert table.filter(kind="test").height == 12
    assert table.filter(kind="published")["source"].unique().to_list() == ["A & B 2018"]
    assert table.filter(kind="cost", group="lora", name="parameters")["mean"].to_list() == [1500.5]
    assert table.filter(kind="test", name="coverage@20")["p"].null_count() == 3


class Reader(html.parser.HTMLParser):
    """Checks that elements are closed in order, and collects them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_else(made):
    text = page(made, "A < B")
    read = Reader(text)
    headings = re.findall(r"<h[23]>(.*?)</h[23]>", text)
    assert headings == [
        "95% intervals", "Differences", "Learning curves", "Accuracy by cost", "By kind of user",
        "NDCG@10 by items in the history", "NDCG@10 by training interactions of the target", "Runs",
    ]  # fmt: skip
    images = [attributes for tag, attributes in read.found if tag == "img"]
    assert len(images) == 4
    assert all(image["src"].startswith("data:image/svg+xml") and image["alt"] for image in images)
    assert not [a for _, a in read.found if re.match(r"https?:|//", a.get("src") or a.get("href") or "")]
    assert "<b>DoRA" not in text
    assert "DoRA ~ {x}^2 \\ &lt;b&gt;" in text
    assert "cold (0) (n = 6)" in text
    heads = [a for tag, a in read.found if tag == "th" and "aria-sort" in a]
    assert len([tag for tag, _ in read.found if tag == "button"]) == len(heads) > 16


def test_the_same_figures_give_the_same_plot(made):
    first, again = (plots.image(plots.intervals(made), "a") for _ in range(2))
    assert first == again


def test_a_page_of_many_rows_and_of_old_runs(tmp_path):
    folders = [made_up_runs.run(tmp_path / f"method_{i}", better=i / 100, rank=i) for i in range(27)]
    for folder in folders:
        per_user = pl.read_parquet(folder / "per_user_test.parquet").drop("history", "target_popularity")
        per_user.write_parquet(folder / "per_user_test.parquet")
    found = finished_runs.find(folders, pytest.fail)
    text = page(statistics(Table(metrics=("ndcg@10",), baseline="method_0"), found, pytest.fail))
    assert "Left out: the per-user results of these runs do not say" in text
    (folders[0] / "metrics.jsonl").unlink()
    single = page(statistics(Table(rows=({"method_0": "0"},)), found, pytest.fail))
    assert "Learning curves" not in single
    assert "Differences" not in single


def test_a_page_of_labelled_rows(tmp_path):
    folders = [made_up_runs.labelled(tmp_path / name, better=1.0, rank=name) for name in "ab"]
    text = page(statistics(Table(baseline="a"), finished_runs.find(folders, pytest.fail), pytest.fail))
    assert "60 users with 120 labels" in text
    assert "AUC" in text
    assert "Left out" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_is_sorted_by_its_columns(made, tmp_path):
    labels = "[...table.rows].slice(1).map(row => row.cells[0].textContent[0]).join('')"
    clicks = "".join(f"heads[{i}].querySelector('button').click(); say();" for i in (3, 3, 0, 15))
    probe = f"""<script>const table = document.querySelector("table.sortable"), heads = table.tHead.rows[0].cells;
    const found = []; const say = () => found.push({labels}); say(); {clicks}
    found.push(heads[15].getAttribute("aria-sort"), heads[0].getAttribute("aria-sort"));
    document.title = found.join(" ");</script></body>"""
    (tmp_path / "page.html").write_text(page(made).replace("</body>", probe), encoding="utf-8")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    # SASRec .9, LoRA, DoRA, base, GRU .1; then the other way; by name; by what was tried, the others after it.
    assert re.findall(r"<title>(.*?)</title>", done.stdout) == ["SGbLD SLDbG GbDLS bDGLS LbDGS descending none"]


def test_the_quickstart_has_intervals_and_lists(tmp_path):
    runs = {name: made_up_runs.run(tmp_path / name, better=i / 10) for i, name in enumerate(("ids", "text"))}
    header, _, ids, text = cells(report.markdown(runs, "One seed."))
    assert header == ["model", "HR@10", "NDCG@10", "MRR", "trained parameters", "time"]
    assert re.fullmatch(r"<u>0\.\d{4}</u> \[0\.\d{3}, 0\.\d{3}\]", ids[2])
    assert re.fullmatch(r"\*\*0\.\d{4}\*\* \[0\.\d{3}, 0\.\d{3}\]", text[2])
    assert report.markdown(runs, "One seed.").endswith("One seed.\n")
    report.page(
        tmp_path / "index.html", "Toys", runs, "One seed.", "For user 7", {"history": ["a", "b & c"], "text": ["d"]}
    )
    page = (tmp_path / "index.html").read_text()
    Reader(page)
    assert "<tr><td>a</td><td>d</td></tr>\n<tr><td>b &amp; c</td><td></td></tr>" in page
