"""The commands that show results: a page of a study, two runs compared, and a table of running trials."""

import io
import json
import os
import socket

import numpy as np
import polars as pl
import pytest
import rich.console

from experiments import report, watch
from experiments.reports import differences, finished_runs, plots
from experiments.reports.page import page
from experiments.reports.spec import Table
from experiments.reports.statistics import statistics
from llm4rec_jax.runs import locks
from tests.helpers import made_up_runs
from tests.helpers.commands import command

HOSTILE = "<script>alert(1)</script> [bold]|*x*\x1b[2J"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = {
        "base": made_up_runs.run(folder / "base"),
        "better": made_up_runs.run(folder / "better", better=0.1, rank=4),
    }
    groups = {name: [finished_runs.read(path)] for name, path in runs.items()}
    table = Table(metrics=("ndcg@10", "mean_rank", "coverage@20"), baseline="base")
    return folder, groups, statistics(table, finished_runs.RunGroups(groups, [], []), pytest.fail)


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """Two runs on data whose titles would be markup."""
    items = pl.read_csv(config.parent / "items.csv")
    items.with_columns(pl.col("title") + HOSTILE).write_csv(config.parent / "items.csv")
    folder = tmp_path_factory.mktemp("trained")
    command("train", f"--config={config}:id", f"--workdir={folder / 'id'}")
    command("train", f"--config={config}:id", f"--workdir={folder / 'pop'}", "--config.baseline.name=popularity")
    return folder


def test_the_users_that_differ_most_come_first(study):
    _, groups, _ = study
    for metric, sign in (("ndcg@10", 1), ("mean_rank", -1)):
        found = differences.duel(groups, metric)
        values = [groups[name][0].tested[metric].to_numpy() for name in ("base", "better")]
        np.testing.assert_allclose(found.gains, sign * (values[1] - values[0]))
        table = differences.user_rows(found, None, 3)
        assert table.header == ["user", "base", "better"]
        assert table.rows[0][0] == f"u{np.argmax(found.gains)}"
    assert differences.duel(groups, "coverage@20") is None


def test_only_keys_that_differ_are_listed(study):
    _, groups, _ = study
    rows = differences.configuration_rows(groups["base"][0], groups["better"][0]).rows
    assert ["train.rank", "", "4"] in rows
    assert {row[0] for row in rows} == {"train.rank", "init_from"}


def test_a_page_shows_where_the_best_model_wins(study):
    _, _, s = study
    ((heading, body),) = report.wins(s, titles=False)
    assert heading == "Where better and base differ most in ndcg@10: users"
    assert body.count("<tr>") > 10
    assert heading in page(s, more=report.wins(s, titles=False))


def test_figures_embed_their_fonts(study, tmp_path):
    _, _, s = study
    report.write_plots(s, tmp_path / "figures")
    files = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert files == ["costs.pdf", "curves.pdf", "intervals.pdf", "users.pdf"]
    for file in files:
        data = (tmp_path / "figures" / file).read_bytes()
        assert b"/FontFile2" in data, "fonts are embedded as TrueType"
        assert b"/Type3" not in data


def test_colours_can_be_told_apart():
    assert len(set(plots._COLOURS)) == len(plots._COLOURS)
    assert len({tuple(plots._style(i).values()) for i in range(91)}) == 91


def test_compare_prints_configuration_metrics_users_and_items(trained):
    done = command("compare", trained / "pop", trained / "id", "--metric=mrr", "--count=40")
    text = done.stdout
    sections = dict(part.split("\n\n", 1) for part in text.split("## ")[1:])
    assert list(sections) == ["Configuration", "Test metrics", "Users by mrr", "Held-out items by mrr"]
    assert "| baseline.name | popularity |" in sections["Configuration"]
    row = next(line for line in sections["Test metrics"].splitlines() if line.startswith("| mrr |"))
    _, a, b, difference = (cell.strip() for cell in row.split("|")[1:5])
    results = [json.loads((trained / name / "result.json").read_text())["test"]["mrr"] for name in ("pop", "id")]
    assert [float(a), float(b)] == pytest.approx(results, abs=5e-5)
    assert float(difference) == pytest.approx(results[1] - results[0], abs=1e-4)
    assert "red chair" in sections["Users by mrr"]
    # Titles are data: no terminal obeys them, no Markdown reads them.
    assert "\x1b" not in text
    assert "<script>" not in text
    assert "&lt;script>" in text


def test_compare_prints_json(trained):
    done = command("compare", trained / "pop", trained / "id", "--json", "--notitles")
    (mrr,) = [row for row in json.loads(done.stdout)["Test metrics"] if row["metric"] == "mrr"]
    assert float(mrr["difference"]) == pytest.approx(float(mrr["id"]) - float(mrr["pop"]), abs=2e-4)


def test_the_report_is_one_page_and_escapes_titles(trained, tmp_path):
    out = tmp_path / "page.html"
    command("report", trained / "pop", trained / "id", f"--out={out}", f"--plots={tmp_path / 'figures'}")
    text = out.read_text(encoding="utf-8")
    assert "held-out items" in text
    assert "chair&lt;script&gt;alert(1)" in text
    assert text.count("<script>") == 1, "the page's own"
    assert 'src="http' not in text
    assert (tmp_path / "figures" / "intervals.pdf").exists()


def test_mistakes_are_told_before_anything_is_read(trained, tmp_path):
    for arguments, words in (
        (("compare", trained / "id"), "compares two runs, and 1 are given"),
        (("compare", trained / "id", trained / "id"), "given twice"),
        (("report", trained / "id", f"--out={tmp_path / 'none' / 'page.html'}"), "a folder that exists"),
        (("watch", tmp_path / "none"), "is not a folder"),
    ):
        done = command(*arguments, check=False)
        assert done.returncode == 2
        assert words in done.stderr


def test_watch_tells_running_from_stopped_and_finished(tmp_path):
    def made(name, **holder):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"train": {"steps": 40, "metric": "ndcg@10"}}))
        (folder / "lock").write_text(json.dumps({"host": socket.gethostname(), **holder}))
        lines = [{"kind": "validation", "step": step, "seconds": step, "ndcg@10": step / 100} for step in (0, 10, 20)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    running, stopped = made("[b]running", pid=os.getpid()), made("stopped", pid=2**22 + 1)
    elsewhere, finished = made("elsewhere", pid=1, host="another"), made("finished", pid=2**22 + 1)
    (finished / "result.json").write_text("{}")
    assert watch.runs_under([tmp_path]) == sorted([running, stopped, elsewhere, finished])
    assert [locks.holder_lives(folder) for folder in (running, stopped, elsewhere)] == [True, False, None]
    console = rich.console.Console(width=200, record=True, file=io.StringIO())
    console.print(watch.table([tmp_path], finished=False))
    text = console.export_text()
    (row,) = [line for line in text.splitlines() if "[b]running" in line]
    assert row.split()[1:5] == ["running", "20/40", "ndcg@10", "0.2000"]
    assert str(finished) not in text
    assert "1 running, 1 stopped, 1 elsewhere, 1 finished" in text


def test_watch_names_the_trials_of_a_sweep(tmp_path):
    """The names are the sweep's, not hashes, and stand whole on a terminal of eighty columns."""
    names = [f"a-long-name-of-a-group-of-trials-{seed}" for seed in range(2)]
    for name in names:
        folder = tmp_path / "study" / f"hash-{name}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"train": {"steps": 40, "metric": "ndcg@10"}}))
        (folder / "lock").write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1}))
        (tmp_path / "study" / "by_name").mkdir(exist_ok=True)
        (tmp_path / "study" / "by_name" / name).symlink_to(folder)
    assert watch.names_of(watch.runs_under([tmp_path]), [tmp_path]) == [f"study/{name}" for name in names]
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(watch.table([tmp_path], finished=False))
    shown = "".join(line[:40].split()[0] for line in console.export_text().splitlines() if line[:40].split())
    assert all(name in shown for name in names)
