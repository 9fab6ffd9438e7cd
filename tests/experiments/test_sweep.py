"""Sweeps: trials run, are kept, go on, fail and are tabled."""

import json
import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from configs import peft_movielens
from experiments import report, trials
from experiments.assemble import Assembly
from experiments.trials import Trial
from llm4rec_jax.peft import METHODS
from tests.experiments.commands import command, last_line

SWEEP = """
from experiments.trials import Trial

BASELINE = "lora"

def sweep():
    base = [Trial(f"base-{s}", "frozen", {"seed": s}, "base") for s in (0, 1)]
    lora = [
        Trial(f"lora-{s}", "lora", {"seed": s, "init_from": f"base-{s}"}, "lora", f"base-{s}") for s in (0, 1)
    ]
    both = {"peft.within": "encoder+users", "init_from": "base-0", "peft.options.lora.rank": 2}
    users = Trial("users", "lora", both, "users", "base-0")
    return [*lora, users, *base, Trial("broken", "lora", {"loss.name": "bpr", "loss.num_negatives": 0}, "broken")]
"""


@pytest.fixture(scope="module")
def study(config: Path) -> Path:
    """A configuration with a sweep, on the tiny dataset."""
    file = config.with_name("swept.py")
    file.write_text(config.read_text() + SWEEP, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def swept(study: Path, tmp_path_factory: pytest.TempPathFactory):
    workdir = tmp_path_factory.mktemp("sweep")
    return workdir, command("sweep", f"--config={study}", f"--workdir={workdir}", "--workers=2", check=False)


def test_every_trial_is_a_finished_run(swept):
    workdir, _ = swept
    for name in ("base-0", "base-1", "lora-0", "lora-1", "users"):
        assert (workdir / name / "result.json").exists(), (workdir / f"{name}.log").read_text()
    held = json.loads((workdir / "lora-1" / "config.json").read_text())
    assert (held["seed"], held["init_from"]) == (1, str(workdir / "base-1"))


def test_a_failed_trial_is_named_with_its_reason_and_the_rest_goes_on(swept):
    workdir, done = swept
    assert done.returncode == 2
    assert "broken: failed with code 2: error: num_negatives is 0" in done.stderr.replace("\n", " ")
    assert "num_negatives is 0" in (workdir / "broken.log").read_text()
    assert "1 trials failed: broken" in done.stderr


def test_the_table_has_a_row_a_group(swept):
    workdir, done = swept
    table = (workdir / "table.md").read_text()
    assert table.strip() in done.stdout
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in table.splitlines()[2:] if "|" in line}
    assert set(rows) == {"base", "lora", "users"}
    results = [json.loads((workdir / f"lora-{s}" / "result.json").read_text()) for s in (0, 1)]
    values = [r["test"]["ndcg@10"] for r in results]
    assert rows["lora"][1] == "1,024"
    assert rows["lora"][3] == f"{sum(values) / 2:.4f} ± {abs(values[0] - values[1]) / 2**0.5:.4f}"
    assert "±" not in rows["users"][3]
    assert "mean ± sd over 1 or 2 seeds. Difference to lora: 95%" in table
    assert "adjustment for 4 comparisons" in table
    assert float(rows["lora"][7].replace(",", "")) >= float(rows["base"][7].replace(",", ""))
    assert rows["lora"][4] == ""
    found = [json.loads((workdir / f"base-{s}" / "result.json").read_text())["test"]["ndcg@10"] for s in (0, 1)]
    mean, low, high = (float(figure.strip("[],")) for figure in rows["base"][4].split())
    assert mean == pytest.approx(sum(found) / 2 - sum(values) / 2, abs=1e-4)
    assert low <= mean <= high
    assert results[0]["step"]["programs"] >= 1
    # The transformer's two blocks and the encoder's two, query and value at rank 2.
    assert rows["users"][1] == f"{2 * 2 * 2 * 2 * (16 + 16):,}"


def test_runs_on_other_users_share_no_table(swept, tmp_path):
    workdir, _ = swept
    copy = Path(shutil.copytree(workdir / "lora-0", tmp_path / "copy"))
    users = pl.read_parquet(copy / "per_user_test.parquet")
    users.reverse().write_parquet(copy / "per_user_test.parquet")
    with pytest.raises(ValueError, match=r"copy was tested on other users than .*lora-0"):
        report.ablation({"a": [workdir / "lora-0"], "b": [copy]})


def test_users_that_were_adapted_are_evaluated_as_trained(swept):
    workdir, _ = swept
    again = last_line(command("evaluate", f"--workdir={workdir / 'users'}"))
    result = json.loads((workdir / "users" / "result.json").read_text())
    assert again == {phase: result[phase] for phase in ("validation", "test")}


def test_finished_trials_are_kept(study, swept):
    workdir, _ = swept
    before = os.stat(workdir / "lora-0" / "result.json").st_mtime_ns
    done = command("sweep", f"--config={study}", f"--workdir={workdir}", "--only=lora")
    assert "4 trials, 4 of them finished" in done.stderr
    assert os.stat(workdir / "lora-0" / "result.json").st_mtime_ns == before
    done = command("sweep", f"--config={study}", f"--workdir={workdir}", "--only=lra", check=False)
    assert "no trials of lra; there are: base, broken, lora, users" in done.stderr


def test_a_trial_that_was_run_with_another_configuration_is_refused(study, swept):
    workdir, _ = swept
    file = study.with_name("changed.py")
    file.write_text(study.read_text().replace('{"seed": s}, "base"', '{"seed": s + 5}, "base"'), encoding="utf-8")
    done = command("sweep", f"--config={file}", f"--workdir={workdir}", check=False)
    assert done.returncode == 2
    assert "holds a run with another configuration; they differ in config.seed (5 asked for, 0 there)" in done.stderr


def test_a_wrong_key_is_named_before_anything_runs(study, tmp_path):
    file = study.with_name("mistyped.py")
    file.write_text(study.read_text().replace('"loss.num_negatives"', '"loss.num_negative"'), encoding="utf-8")
    done = command("sweep", f"--config={file}", f"--workdir={tmp_path}", check=False)
    assert done.returncode == 2
    assert "the trial broken cannot be configured" in done.stderr
    assert "num_negatives" in done.stderr
    assert not list(tmp_path.glob("*.log"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("x = 1", r"has no function sweep\(\)"),
        ("from experiments.trials import Trial\nsweep = lambda: [Trial('a', '', {}, 'g')] * 2", "two trials a"),
        ("from experiments.trials import Trial\nsweep = lambda: [Trial('a', '', {}, 'g', 'b')]", "come after b, which"),
        (
            "from experiments.trials import Trial\nBASELINE = 'f'\nsweep = lambda: [Trial('a', '', {}, 'g')]",
            "BASELINE is 'f', and sweep",
        ),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    file = tmp_path / "wrong.py"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        trials.load(str(file))


def test_the_study_has_every_method_three_times():
    listed = peft_movielens.sweep()
    assert {t.group for t in listed} == {*METHODS, "base"}
    assert all(sum(t.group == group for t in listed) == 3 for group in METHODS)
    assert isinstance(listed[0], Trial)


@pytest.mark.parametrize("arg", ["base", *sorted(METHODS), "lora+bitfit"])
def test_every_arm_of_the_study_can_be_assembled(arg):
    chosen = peft_movielens.get_config(arg)
    assembly = Assembly(chosen)
    assert assembly.method.name == ("frozen" if arg == "base" else arg)
    with pytest.raises(ValueError, match="did you mean 'lora'"):
        peft_movielens.get_config("lroa")
