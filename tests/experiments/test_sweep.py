"""Sweeps: trials run, are broken off, go on, are kept, fail and are tabled."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import tables
from experiments.sweeps import trials
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.training import metric_writer
from tests.helpers.commands import ROOT, command, last_line
from tests.helpers.compiling import environment

SWEEP = """
from experiments.sweeps.trials import Trial

BASELINE = "base"

def sweep():
    base = Trial("base-0", "frozen", {"seed": 0, "train.steps": 600, "train.eval_every": 200}, "base")
    both = {"peft.within": "encoder+users", "init_from": "base-0", "peft.options.lora.rank": 2}
    users = Trial("users", "lora", both, "users")
    broken = Trial("broken", "lora", {"loss.name": "bpr", "loss.num_negatives": 0}, "broken")
    return [users, base, broken, Trial("never", "lora", {"seed": 1}, "never", "broken")]
"""


@pytest.fixture(scope="module")
def study(config: Path) -> Path:
    """A configuration with a sweep, on the tiny dataset."""
    file = config.with_name("swept.py")
    file.write_text(config.read_text() + SWEEP, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def interrupted(study: Path, tmp_path_factory: pytest.TempPathFactory):
    """A sweep that got SIGTERM while its first trial trained: workdir, exit code, stderr, steps and statuses."""
    workdir = tmp_path_factory.mktemp("sweep")
    sweep = subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", f"--config={study}", f"--workdir={workdir}", "--only=users"],
        cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    records = workdir / "by_name" / "base-0" / "metrics.jsonl"
    limit = time.monotonic() + 300
    while not any(r["step"] > 0 for r in metric_writer.read(records)) and time.monotonic() < limit:
        time.sleep(0.05)
    sweep.send_signal(signal.SIGTERM)
    _, said = sweep.communicate(timeout=300)
    (step,) = re.findall(r"SIGTERM: saved at step (\d+)", " ".join(records.with_name("log.txt").read_text().split()))
    return workdir, sweep.returncode, said, int(step), statuses(workdir)


@pytest.fixture(scope="module")
def swept(study: Path, interrupted):
    workdir = interrupted[0]
    return workdir, command("sweep", f"--config={study}", f"--workdir={workdir}", "--workers=2", check=False)


def statuses(workdir: Path) -> dict[str, str]:
    return {trial["name"]: trial["status"] for trial in json.loads((workdir / "sweep.json").read_text())["trials"]}


def folder(workdir: Path, name: str) -> Path:
    listed = json.loads((workdir / "sweep.json").read_text())["trials"]
    return workdir / next(trial["folder"] for trial in listed if trial["name"] == name)


def test_a_sweep_that_is_stopped_saves_its_trials_and_says_how_to_go_on(interrupted):
    _, code, said, step, status = interrupted
    assert code == 128 + signal.SIGTERM
    assert "SIGTERM: every trial has saved and stopped; the same command goes on from there" in said
    assert 0 < step < 600
    assert status == {
        "base-0": "interrupted", "users": "waiting", "broken": "waiting", "never": "waiting",
    }  # fmt: skip


def test_the_stopped_trial_went_on_and_the_others_ran(interrupted, swept):
    workdir, done = swept
    assert statuses(workdir) == {
        "base-0": "finished", "users": "finished", "broken": "failed", "never": "failed",
    }, done.stderr  # fmt: skip
    assert f"going on after step {interrupted[3]}" in " ".join(
        (folder(workdir, "base-0") / "log.txt").read_text().split()
    )


def test_a_folder_is_named_by_its_configuration(study, swept):
    workdir, _ = swept
    held = json.loads((folder(workdir, "users") / "config.json").read_text())
    assert held["init_from"] == str(folder(workdir, "base-0").resolve())
    for name in ("base-0", "users"):
        link = workdir / "by_name" / name
        assert os.readlink(link) == f"../{folder(workdir, name).name}"
        assert (link / "result.json").exists()
    # Wherever the workdir lies, and in whatever order keys come.
    planned = trials.plan(trials.load(str(study)), Path("elsewhere"))
    assert {run.trial.name: run.folder.name for run in planned} == {
        run.trial.name: folder(workdir, run.trial.name).name for run in planned
    }
    assert all(len(run.folder.name) == 12 and int(run.folder.name, 16) >= 0 for run in planned)


def test_a_failed_trial_is_recorded_with_its_traceback(swept):
    workdir, done = swept
    assert done.returncode == 2
    assert "2 trials failed" in done.stderr
    assert "broken: ValueError: num_negatives is 0" in done.stderr
    assert "never: not started, since broken failed" in done.stderr
    assert str(folder(workdir, "never") / "failure.txt") not in done.stderr
    record = (folder(workdir, "broken") / "failure.txt").read_text()
    assert str(folder(workdir, "broken") / "failure.txt") in done.stderr
    assert "ended: exit code 1" in record
    assert "python -m experiments.train" in record
    assert "Traceback (most recent call last)" in record
    assert "in _check_loss" in record
    state = json.loads((workdir / "sweep.json").read_text())
    (error,) = [trial["error"] for trial in state["trials"] if trial["name"] == "broken"]
    assert error.startswith("ValueError: num_negatives is 0")


def test_the_table_is_that_of_the_finished_trials(study, swept):
    workdir, done = swept
    table = (workdir / "table.md").read_text()
    assert table == tables.of_sweep(workdir, study)
    assert table.strip() in done.stdout
    rows = [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:] if line.startswith("|")]
    assert sorted(rows) == ["base", "users"]


def test_users_that_were_adapted_are_evaluated_as_trained(swept):
    workdir, _ = swept
    again = last_line(command("evaluate", f"--workdir={workdir / 'by_name' / 'users'}"))
    result = json.loads((folder(workdir, "users") / "result.json").read_text())
    assert again == {phase: result[phase] for phase in ("validation", "test")}
    # The transformer's two blocks and the encoder's two, query and value at rank 2.
    assert result["parameters"]["delta"] == 2 * 2 * 2 * 2 * (16 + 16)


def test_finished_trials_are_kept_where_the_workdir_has_moved(study, swept, tmp_path):
    workdir, _ = swept
    moved = tmp_path / "moved"
    workdir.rename(moved)
    try:
        before = os.stat(folder(moved, "users") / "result.json").st_mtime_ns
        done = command("sweep", f"--config={study}", f"--workdir={moved}", "--only=users")
        assert "2 trials, 2 of them finished" in done.stderr
        assert os.stat(folder(moved, "users") / "result.json").st_mtime_ns == before
        assert statuses(moved)["broken"] == "failed"
        held = json.loads((folder(moved, "users") / "config.json").read_text())
        assert held["init_from"] == str(folder(moved, "base-0").resolve())
    finally:
        moved.rename(workdir)


def test_a_changed_trial_is_another_run_and_a_changed_folder_is_refused(study, swept):
    workdir, _ = swept
    changed = study.with_name("changed.py")
    changed.write_text(study.read_text().replace('"peft.options.lora.rank": 2', '"peft.options.lora.rank": 3'))
    planned = {run.trial.name: run for run in trials.plan(trials.load(str(changed)), workdir)}
    assert not planned["users"].finished
    assert planned["base-0"].finished
    file = planned["base-0"].folder / "config.json"
    held = file.read_text()
    run_folder.write(file, {**run_folder.read(file), "seed": 7})
    with pytest.raises(ValueError, match=r"is not what its folder is named by.*base-0"):
        trials.open_folder(planned["base-0"])
    file.write_text(held)
