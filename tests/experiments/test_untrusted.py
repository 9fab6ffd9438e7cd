"""Run folders, data and labels of other people: nothing in them is run, or read as markup."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import rich.console
from ml_collections import ConfigDict

from experiments import tables
from experiments.cli.console import visible
from experiments.recommend import Recommendation
from experiments.recommend import table as side_by_side
from experiments.reports.render import escape_markdown
from experiments.sweeps import trials
from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs import plugins
from tests.helpers import made_up_runs, tiny
from tests.helpers.commands import ROOT, command
from tests.helpers.compiling import environment

HOSTILE = "from pathlib import Path\nPath({marker!r}).touch()\n"


# ----------------------------------------------------------------------------------------------------------------- code
def test_a_table_runs_no_file_that_a_folder_names(tmp_path, capsys):
    marker = tmp_path / "ran"
    workdir = made_up_runs.sweep(tmp_path / "sweep", HOSTILE.format(marker=str(marker)), a=0.0, b=0.1)
    assert "| a " in tables.write([workdir], "markdown")
    assert not marker.exists()
    assert "--spec=" in capsys.readouterr().err
    tables.write([workdir], "markdown", tmp_path / "sweep_config.py")
    assert marker.exists()


@pytest.mark.parametrize("name", ["evaluate", "recommend", "encode", "export", "train_together"])
def test_a_run_folder_s_imports_need_the_command_line(tmp_path, name, monkeypatch):
    marker, run = tmp_path / "ran", tmp_path / "run"
    (tmp_path / "hostile_plugin.py").write_text(HOSTILE.format(marker=str(marker)))
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"imports": "hostile_plugin"}))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    arguments = {
        "recommend": ["--user=u1"],
        "encode": [f"--out={tmp_path / 'x.npy'}"],
        "export": [f"--out={tmp_path / 'x'}"],
        "train_together": ["--runs=run"],
    }
    workdir = tmp_path if name == "train_together" else run
    done = command(name, f"--workdir={workdir}", *arguments.get(name, []), check=False)
    assert done.returncode == 2
    assert "--trust_imports=hostile_plugin" in done.stderr
    assert not marker.exists()


def test_trust_imports_runs_what_the_command_line_names_and_never_what_lies_in_the_folder(tmp_path, monkeypatch):
    (tmp_path / "named_plugin.py").write_text("")
    (tmp_path / "config.json").write_text(json.dumps({"imports": "named_plugin"}))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="names code to import, named_plugin"):
        run_folder.config_of(tmp_path)
    with pytest.raises(ValueError, match="lies in the run folder"):
        plugins.load(["named_plugin"], tmp_path)
    assert "named_plugin" not in sys.modules
    plugins.load(["named_plugin"], tmp_path / "elsewhere")
    assert run_folder.config_of(tmp_path).imports == "named_plugin"
    del sys.modules["named_plugin"]


def test_a_package_inside_the_folder_is_not_run_to_find_what_is_in_it(tmp_path, monkeypatch):
    package = tmp_path / "package_of_run"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="lies in the run folder"):
        plugins.load(["package_of_run.methods"], tmp_path)


@pytest.mark.parametrize("name", [".", "../x", "a..b", "a/b", "x.py:y", "-c"])
def test_a_name_that_is_no_module_s(name):
    with pytest.raises(ValueError, match=r"config\.imports: .* is no module's name"):
        plugins.load([name])


def test_runs_trained_together_are_trusted_by_the_file_that_lists_them(tmp_path):
    config = ConfigDict({"imports": "mine.methods mine.losses"})
    run = trials.TrialRun(trials.Trial("t", "", {}, "t"), config, tmp_path / "t", {}, ())
    assert trials.joint_command([run])[-1] == "--trust_imports=mine.methods,mine.losses"


def test_templates_read_columns_and_no_attributes():
    items = tiny.dataset().items
    for template in ("{title.__class__}", "{title[0]}", "{title.__init__.__globals__}"):
        with pytest.raises(ValueError, match="template field"):
            item_texts(items, template)


# --------------------------------------------------------------------------------------------------------------- markup
@pytest.mark.parametrize("title", ["Movie [/b] ending", "[b]bold[/b]", "[link=http://a]x[/link]", "\\[x", ":smile:"])
def test_titles_are_shown_as_they_are(title):
    console = rich.console.Console(file=io.StringIO(), width=200, force_terminal=True)
    console.print(side_by_side([title, title], [0], [Recommendation(1, 0.5)]))
    assert console.file.getvalue().count(title) == 2


def test_control_characters_of_titles_are_symbols():
    console = rich.console.Console(file=io.StringIO(), width=200)
    title = "a\x1b[2Jb\rc\x9bd\u202ee"
    console.print(side_by_side([title, title], [0], [Recommendation(1, 0.5)]))
    shown = console.file.getvalue()
    assert shown.count("a␛[2Jb␍c\\u009bd\\u202ee") == 2
    assert not set(shown) & {"\x1b", "\r", "\x9b", "\u202e"}


def test_control_characters_of_errors_are_symbols(tmp_path):
    done = command("tables", tmp_path / "a\x1b[2Jb", check=False)
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "␛[2J" in done.stderr


def table_of(tmp_path: Path, label: str, form: str) -> str:
    workdir = made_up_runs.sweep(tmp_path / "sweep", a=0.0, b=0.1)
    spec = tmp_path / "spec.py"
    spec.write_text(
        "from experiments.tables import Table\n"
        f"def table(): return Table(rows=({{'a': {label!r}}}, {{'b': 'B'}}), baseline='b')\n"
    )
    return tables.write([workdir], form, spec)


@pytest.mark.parametrize("label", ["[1ex] a", "*", "[x]"])
def test_a_label_is_no_option_of_latex(tmp_path, label):
    lines = [line for line in table_of(tmp_path, label, "latex").splitlines() if label in line]
    assert lines
    assert all(line.startswith("{}") for line in lines)


@pytest.mark.parametrize("label", ["=1+1", "+1", "-cmd|' /C calc'!A0", "@SUM(A1)", "\t=1+1"])
def test_a_label_is_no_formula_of_a_spreadsheet(tmp_path, label):
    rows = list(csv.DictReader(io.StringIO(table_of(tmp_path, label, "csv"))))
    assert {row["label"] for row in rows} == {f"'{label}", "B"}
    # Numbers stay numbers.
    assert any(float(row["difference"] or 0) < 0 for row in rows)


@pytest.mark.parametrize("label", ["[text](http://a)", "![image](http://a)", "<img src=x>", "&lt;b>", "~~gone~~"])
def test_a_label_is_no_link_of_markdown(tmp_path, label):
    rows = [line for line in table_of(tmp_path, label, "markdown").splitlines() if line.startswith("| ")]
    line = next(row for row in rows[1:] if not row.startswith(("| B", "| ---")))
    assert f"| {escape_markdown(label)} |" in line.replace("**", "").replace("<u>", "").replace("</u>", "")
    assert not re.search(r"(?<!\\)\]\(|<img|\| &lt;b>|(?<!\\)~", line)


def test_control_characters_of_labels_are_symbols_in_every_format(tmp_path):
    for form in tables.FORMATS:
        folder = tmp_path / form
        folder.mkdir()
        text = table_of(folder, "a\x1b]0;x\x07b", form)
        assert "\x1b" not in text
        assert "a␛" in text


# -------------------------------------------------------------------------------------------------------------- notices
def test_notices_of_runs_stand_under_the_table(tmp_path):
    workdir = made_up_runs.sweep(tmp_path / "sweep", a=0.0, b=0.1)
    for group, names in (("a", ("repeats", "equal_times")), ("b", ("repeats",))):
        for seed in (0, 1):
            file = workdir / f"hash-of-{group}-{seed}" / "result.json"
            result = json.loads(file.read_text())
            result["notices"] = [
                {"name": name, "message": f"{name}: 5% of users", "key": f"data.{name}"} for name in names
            ]
            file.write_text(json.dumps(result))
    text = tables.write([workdir], "markdown")
    both, one = "repeats: 5% of users (data.repeats)", "a: equal_times: 5% of users (data.equal_times)"
    assert text.endswith(f"\n\n- {both}\n- {one}\n")
    assert f"<li>{both}</li>" in tables.write([workdir], "html")
    assert "repeats: 5\\% of users" in tables.write([workdir], "latex")
    rows = list(csv.DictReader(io.StringIO(tables.write([workdir], "csv"))))
    assert [row["source"] for row in rows if row["kind"] == "notice"] == [both, one]


# ---------------------------------------------------------------------------------------------------------------- paths
@pytest.mark.parametrize("name", ["a[1]b", "with space", "st*r?", "übung 日本", "line\nbreak", "x" * 200])
def test_a_sweep_s_workdir_may_be_called_anything(tmp_path, name):
    workdir = made_up_runs.sweep(tmp_path / name, a=0.0, b=0.1)
    assert "| a " in tables.write([workdir], "markdown")
    assert "| a" in tables.write([workdir / "hash-of-a-0", workdir / "hash-of-b-0"], "markdown").replace("hash-of-", "")
    assert "</html>" in tables.write([workdir], "html")


def test_a_deleted_working_directory_is_said(tmp_path):
    script = (
        "import os, runpy, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); "
        "sys.argv = ['tables', 'x']; runpy.run_module('experiments.tables', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**environment(), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "error: the working directory does not exist any more: cd to another"


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / "file").touch()
    for name in ("evaluate", "encode"):
        out = [f"--out={tmp_path / 'x.npy'}"] if name == "encode" else []
        done = command(name, f"--workdir={tmp_path / 'file'}", *out, check=False)
        assert done.returncode == 2
        assert done.stderr.strip().splitlines()[-1].startswith(f"error: --workdir={tmp_path / 'file'} is a file")


def test_a_command_needs_no_home(tmp_path):
    script = (
        "import os, pathlib, runpy, sys\n"
        "def lost(*_): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = lost\n"
        "from experiments.cli import compilation_cache\n"
        "compilation_cache.enable()\n"
        "import jax; print(jax.numpy.ones(3).sum())"
    )
    env = {name: value for name, value in environment().items() if name not in ("XDG_CACHE_HOME", "HOME")}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "3.0\n"


def test_visible_leaves_ordinary_text_alone():
    assert visible("Amélie (2001) 日本 עברית 👩‍👩‍👧") == "Amélie (2001) 日本 עברית 👩‍👩‍👧"
