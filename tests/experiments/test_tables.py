"""Tables' figures: which runs make a row, what is compared with what, and what is refused."""

import json
import re
import shutil

import numpy as np
import polars as pl
import pytest

from experiments import tables
from experiments.reports import finished_runs
from experiments.reports.bands import bandings
from experiments.reports.spec import Table, checked
from experiments.reports.statistics import statistics
from llm4rec_jax.evaluation import rating_metrics
from llm4rec_jax.evaluation.significance import compare, holm, interval
from llm4rec_jax.runs.folder import RunFolderError
from tests.helpers import made_up_runs
from tests.helpers.commands import ROOT, command


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return made_up_runs.sweep(tmp_path_factory.mktemp("tables") / "sweep", base=0.0, lora=0.05, dora=0.01)


@pytest.fixture(scope="module")
def found(workdir):
    return finished_runs.find([workdir], pytest.fail)


def made(table, found):
    return {row.group: row for row in statistics(table, found, pytest.fail).rows}


def test_a_cell_is_the_mean_over_seeds_and_users(found):
    cell = made(Table(), found)["lora"].cells["ndcg@10"]
    values = np.stack([run.values("ndcg@10") for run in found.groups["lora"]])
    assert cell.mean == pytest.approx(values.mean())
    assert cell.sd == pytest.approx(values.mean(1).std(ddof=1))
    assert cell.interval == interval(values.mean(0))
    assert cell.comparison is None


def test_comparisons_are_of_all_rows_and_metrics_together(found):
    metrics = ("ndcg@10", "mrr", "coverage@20")
    s = statistics(Table(metrics=metrics, baseline="base"), found, pytest.fail)
    rows = {row.group: row for row in s.rows}
    values = {
        group: {name: np.stack([run.values(name) for run in runs]) for name in metrics[:2]}
        for group, runs in found.groups.items()
    }
    want = compare(values, "base")
    for group in ("lora", "dora"):
        for name in metrics[:2]:
            assert rows[group].cells[name].comparison == want[group][name]
    assert s.comparisons == 4
    assert rows["lora"].cells["ndcg@10"].comparison.adjusted < 0.05
    # A metric without values by user is not tested, but it changes.
    assert rows["lora"].cells["coverage@20"].comparison is None
    assert rows["lora"].cells["coverage@20"].interval is None
    assert rows["lora"].cells["coverage@20"].change == pytest.approx(10)
    assert rows["base"].cells["mrr"].against is None


def test_the_best_of_several_baselines_is_that_of_each_metric(found):
    rows = made(Table(metrics=("ndcg@10", "mean_rank", "hr@10"), baseline=("base", "lora")), found)
    means = {name: {g: rows[g].cells[name].mean for g in ("base", "lora")} for name in ("hr@10", "ndcg@10")}
    dora = rows["dora"].cells
    # For ranks less is better.
    assert dora["ndcg@10"].against == dora["mean_rank"].against == "lora"
    assert dora["hr@10"].against == max(means["hr@10"], key=means["hr@10"].__getitem__)
    difference = dora["ndcg@10"].mean - means["ndcg@10"]["lora"]
    assert dora["ndcg@10"].comparison.difference.mean == pytest.approx(difference)
    assert dora["ndcg@10"].change == pytest.approx(100 * difference / means["ndcg@10"]["lora"])
    assert rows["base"].cells["ndcg@10"].comparison is rows["lora"].cells["ndcg@10"].comparison is None


def test_costs_are_means_over_seeds_and_empty_where_nothing_was_measured(found, tmp_path):
    lora = made(Table(costs=tuple(tables.COSTS)), found)["lora"].costs
    assert lora["parameters"] == [1500, 1501]
    assert lora["share"] == [2.5, 2.5]
    assert (lora["gflop"], lora["memory"], lora["time"]) == ([3, 3], [2, 2], [30, 31])
    folder = made_up_runs.run(tmp_path / "popularity")
    result = json.loads((folder / "result.json").read_text())
    made_up_runs.write(folder, "result.json", result | {"step": {}, "parameters": {"trainable": 0}})
    closed = made(Table(), finished_runs.find([folder], pytest.fail))["popularity"].costs
    assert (closed["parameters"], closed["share"], closed["step"], closed["gflop"]) == ([0], [], [], [])


def test_runs_of_their_own_are_grouped_by_configuration_without_the_seed(tmp_path):
    folders = [
        made_up_runs.run(tmp_path / "lora-seed0", 0),
        made_up_runs.run(tmp_path / "lora-seed1", 1),
        made_up_runs.run(tmp_path / "lora-wide", 0, rank=8),
        made_up_runs.run(tmp_path / "other" / "lora-wide", 0, rank=9),
    ]
    # A configuration of a newer version has one more key, which nobody has set.
    config = json.loads((folders[1] / "config.json").read_text())
    made_up_runs.write(folders[1], "config.json", config | {"new": {"key": None}})
    groups = finished_runs.find([*folders, folders[0]], pytest.fail).groups
    assert {name: len(runs) for name, runs in groups.items()} == {
        "lora": 2,
        str(folders[2]): 1,
        str(folders[3]): 1,
    }


def test_unfinished_runs_and_groups_are_named_and_left_out(workdir, tmp_path, capsys):
    copy = shutil.copytree(workdir, tmp_path / "sweep")
    trials = {
        trial["name"]: copy / trial["folder"] for trial in json.loads((copy / "sweep.json").read_text())["trials"]
    }
    for name in ("lora-1", "dora-0", "dora-1"):
        (trials[name] / "result.json").unlink()
    (workdir.with_name("rows.py")).write_text(
        "from experiments.tables import Table\n"
        "table = lambda: Table(rows=({'base': 'B', 'dora': 'D', 'lora': 'L'},), baseline='dora')"
    )
    rows = tables.of_folders([copy], workdir.with_name("rows.py")).rows
    assert [(row.label, len(row.runs)) for row in rows] == [("B", 2), ("L", 1)]
    said = capsys.readouterr().err
    assert f"warning: {trials['lora-1']} (lora) has not finished" in said
    assert "dora: no run of it has finished; left out" in said
    assert "the baseline dora has no finished run among the rows" in said


def test_a_group_that_differs_in_more_than_the_seed_is_told(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "sweep")
    folder = copy / json.loads((copy / "sweep.json").read_text())["trials"][0]["folder"]
    config = json.loads((folder / "config.json").read_text())
    made_up_runs.write(folder, "config.json", config | {"train": {**config["train"], "rate": 1}})
    said = []
    finished_runs.find([copy], said.append)
    assert said == ["base: its runs differ in more than the seed: train.rate"]


def test_of_sweep_uses_its_configuration(tmp_path):
    workdir = made_up_runs.sweep(tmp_path / "sweep", "BASELINE = 'base'", base=0.0, lora=0.05)
    spec = workdir.with_name("sweep_config.py")
    assert "†: differs from base" in tables.of_sweep(workdir, spec)
    spec.write_text(
        "from experiments.tables import Table\n"
        "def table():\n    return Table(rows=({'lora': 'Ours'},), metrics=('mrr',), costs=(), caption='Toys.')\n"
    )
    lines = tables.of_sweep(workdir, spec).splitlines()
    assert lines[0] == "| model | MRR |"
    assert lines[2].startswith("| Ours | ")
    assert lines[4].startswith("Toys. Test, 60 users, toys, leave-one-out. Mean ± sd over 2 seeds.")


def test_a_sweep_without_its_configuration_still_has_a_table(workdir, tmp_path, capsys):
    copy = shutil.copytree(workdir, tmp_path / "sweep")
    sweep = json.loads((copy / "sweep.json").read_text())
    made_up_runs.write(copy, "sweep.json", sweep | {"config": "gone.py"})
    assert tables.write([copy], "markdown").count("\n| ") == 4
    assert "--spec=gone.py" in capsys.readouterr().err


def test_labelled_rows_are_compared_by_a_bootstrap_of_users(tmp_path):
    folders = [
        made_up_runs.labelled(tmp_path / f"{name}-{seed}", seed, better, rank=name)
        for name, better in (("a", 0.2), ("b", 1.5), ("c", 0.25))
        for seed in (0, 1)
    ]
    found = finished_runs.find(folders, pytest.fail)
    s = statistics(Table(baseline="a"), found, pytest.fail)
    assert s.metrics == ["auc"]
    rows = {row.group: row.cells["auc"] for row in s.rows}
    samples = {group: rating_metrics.samples([run.tested for run in runs]) for group, runs in found.groups.items()}
    assert rows["b"].interval == rating_metrics.clustered_interval(*samples["b"])
    assert rows["b"].mean == pytest.approx(rows["b"].interval.mean)
    pair = rating_metrics.clustered_difference(samples["b"][0], *samples["a"], resamples=10_000)
    assert rows["b"].comparison[:2] == (pair.difference, pair.p)
    p = [rows[group].comparison.p for group in ("b", "c")]
    assert [rows[group].comparison.adjusted for group in ("b", "c")] == holm(np.array(p)).tolist()
    assert rows["b"].comparison.adjusted < 0.05 < rows["c"].comparison.adjusted
    assert "p below .05 by the bootstrap over users" in tables.FORMATS["markdown"](s)
    assert bandings(found.groups["a"]) == []


def test_bands_part_the_users(found):
    activity, popularity = bandings(found.groups["base"])
    assert [(band.name, band.members.sum()) for band in activity.bands] == [
        ("1–3", 15), ("4–6", 15), ("7–9", 15), ("10–12", 15),
    ]  # fmt: skip
    assert popularity.bands[0].name == "cold (0)"
    assert [band.members.sum() for band in popularity.bands] == [6, 18, 12, 12, 12]
    np.testing.assert_array_equal(sum(band.members.astype(int) for band in popularity.bands), 1)


def change(folder, file, **values):
    held = json.loads((folder / file).read_text())
    made_up_runs.write(folder, file, held | values)


def users(folder, reorder):
    per_user = pl.read_parquet(folder / "per_user_test.parquet")
    reorder(per_user).write_parquet(folder / "per_user_test.parquet")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: change(b, "dataset.json", fingerprint="cd34"), r"fingerprint \('ab12' and 'cd34'\)"),
        (lambda b: change(b, "dataset.json", protocol="ratio", split={"train": 400, "test": 60, "new": 1}),
         r"protocol \('leave-one-out' and 'ratio'\); split.train \(500 and 400\)"),
        (lambda b: users(b, lambda t: t.reverse()), r"user_id of row 0 of the tested \('u0' and 'u59'\)"),
        (lambda b: users(b, lambda t: t.with_columns(history=pl.col("history") + 1)), r"history of row 0 .*1 and 2"),
        (lambda b: change(b, "result.json", test={"ndcg@10": 0.3, "hits": 1}), "is damaged|different evaluations"),
    ],
)  # fmt: skip
def test_runs_that_do_not_belong_together_are_refused(tmp_path, damage, message):
    a, b = made_up_runs.run(tmp_path / "a"), made_up_runs.run(tmp_path / "b", rank=8)
    damage(b)
    with pytest.raises(ValueError, match=message) as caught:
        made(Table(), finished_runs.find([a, b], pytest.fail))
    assert str(b) in str(caught.value)


def test_runs_with_other_metrics_or_users_or_tasks_are_refused(tmp_path):
    a = made_up_runs.run(tmp_path / "a")
    fewer = made_up_runs.run(tmp_path / "fewer", users=50)
    labelled = made_up_runs.labelled(tmp_path / "labelled")
    more = made_up_runs.run(tmp_path / "more", rank=8)
    result = json.loads((more / "result.json").read_text())
    change(more, "result.json", test=result["test"] | {"novelty@20": 3.0})
    for other, message in (
        (fewer, r"a and .*fewer cannot share a table.*tested users \(60 and 50\)"),
        (labelled, r"what was tested \(ranks of targets and labels of rows\)"),
        (more, r"metrics \(only there: none and only there: novelty@20\)"),
    ):
        with pytest.raises(ValueError, match=message):
            finished_runs.check_comparable([finished_runs.read(a), finished_runs.read(other)])


def test_what_has_no_vectors_has_no_diversity_and_shares_a_table_all_the_same(tmp_path):
    plain, more = made_up_runs.run(tmp_path / "plain"), made_up_runs.run(tmp_path / "more", rank=8)
    result = json.loads((more / "result.json").read_text())
    change(more, "result.json", test=result["test"] | {"diversity@20": 0.4})
    for folders in ([plain, more], [more, plain]):
        found = finished_runs.find(folders, pytest.fail)
        assert len(made(Table(), found)) == 2
        with pytest.raises(ValueError, match=r"diversity@20'"):
            made(Table(metrics=("diversity@20",)), found)
    with pytest.raises(ValueError, match=r"plain has none; leave the metric or the row out"):
        made(Table(metrics=("diversity@20",)), finished_runs.find([more, plain], pytest.fail))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("result.json", "{", r"result.json is damaged"),
        ("result.json", "[]", r"result.json is damaged: it must have numbers"),
        ("result.json", '{"test": {"mrr": "high"}, "parameters": {}, "seconds": 1}', "it must have numbers"),
        ("dataset.json", "{}", "dataset.json is damaged: it must have name, fingerprint and protocol"),
        ("config.json", "", "config.json is damaged"),
        ("per_user_test.parquet", "PAR1", "per_user_test.parquet is damaged"),
        ("per_user_test.parquet", None, "per_user_test.parquet does not exist, though"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, file, text, message):
    folder = made_up_runs.run(tmp_path / "a")
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(RunFolderError, match=message) as caught:
        finished_runs.find([folder], pytest.fail)
    assert str(folder / file) in str(caught.value)


def test_results_of_another_evaluation_are_refused(tmp_path):
    folder = made_up_runs.run(tmp_path / "a")
    users(folder, lambda t: t.with_columns(mrr=pl.col("mrr") + 0.01))
    with pytest.raises(RunFolderError, match=r"the mean of mrr is .*result.json says .*different evaluations"):
        finished_runs.read(folder)
    folder = made_up_runs.labelled(tmp_path / "b")
    change(folder, "result.json", test={"auc": 0.9})
    with pytest.raises(RunFolderError, match=r"the auc of its rows is .*result.json says 0.9"):
        finished_runs.read(folder)


def test_folders_without_a_table_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is neither the folder of a run"):
        finished_runs.find([tmp_path], pytest.fail)
    a, b = (made_up_runs.run(tmp_path / name) for name in "ab")
    change(b, "config.json", init_from=str(a))
    with pytest.raises(ValueError, match=r"a and .*b are one configuration with one seed"):
        finished_runs.find([a, b], pytest.fail)
    (a / "result.json").unlink()
    with pytest.raises(ValueError, match=r"no run in .*a has finished"):
        finished_runs.find([a], lambda text: None)
    made_up_runs.write(tmp_path, "sweep.json", {"trials": [{"name": "a"}], "config": "x.py"})
    with pytest.raises(RunFolderError, match=r"sweep.json is damaged \(KeyError\('group'\)\)"):
        finished_runs.find([tmp_path], pytest.fail)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (Table(metrics=("ndcg@1",)), r"unknown metric 'ndcg@1'; did you mean 'ndcg@10'\? Choose from: hr@10"),
        (Table(main="recall"), "unknown metric 'recall'"),
        (Table(published=[("A", {"mr": 1.0}, "B")]), "unknown metric 'mr'"),
        (Table(rows=({"lra": "LoRA"},)), "unknown group of rows 'lra'; did you mean 'lora'"),
        (Table(baseline=("base", "lra")), "unknown group of baseline 'lra'"),
        (Table(tried={"x": 3}), "unknown group of tried 'x'; Choose from: base, lora, dora"),
    ],
)
def test_unknown_names_list_what_exists(found, table, message):
    with pytest.raises(ValueError, match=message):
        made(table, found)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (Table(rows={"a": "A"}), "it must be sections"),
        (Table(rows=({"a": "A"}, {"a": "B"})), "rows has a twice"),
        (Table(metrics="mrr"), "metrics is 'mrr'; it must be a sequence"),
        (Table(costs=("steps",)), "unknown cost 'steps'; did you mean 'step'"),
        (Table(baseline=()), "baseline is empty"),
        (Table(spread="se"), "unknown spread 'se'"),
        (Table(scale=10), "scale is 10, must be 1 or 100"),
        (Table(digits=-1), "digits is -1"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        checked(table)


def test_the_documents_example_is_a_table():
    text = (ROOT / "docs" / "guides" / "tables.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope = {}
    exec(code, scope)
    assert checked(scope["table"]()).scale == 100


def test_a_specification_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone.py does not exist; --spec names"):
        tables.of_folders([made_up_runs.run(tmp_path / "a")], tmp_path / "gone.py")
    (tmp_path / "wrong.py").write_text("table = lambda: 3")
    with pytest.raises(
        ValueError, match=r"wrong.py: table\(\) returns int; it must return an experiments.tables.Table"
    ):
        tables.of_folders([tmp_path / "a"], tmp_path / "wrong.py")


def test_the_command_writes_a_file(workdir, tmp_path):
    out = tmp_path / "new" / "table.csv"
    done = command("tables", workdir, "--format=csv", f"--out={out}")
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: all groups are shown; ")
    assert out.read_text() == tables.write([workdir], "csv")


def test_an_unknown_format_is_named(workdir):
    message = r"unknown table format 'text'; did you mean 'latex'\? Choose from: markdown, latex, html, csv"
    with pytest.raises(ValueError, match=message):
        tables.write([workdir], "text")
