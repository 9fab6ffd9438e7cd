"""One process at a time works in a folder; the second is told who the first is, and nobody waits for the dead."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from experiments.sweeps.processes import Job, Process, wait
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs.locks import FolderInUse, Lock
from llm4rec_jax.training import metric_writer as journal
from llm4rec_jax.training.checkpoint import latest_step
from tests.helpers.commands import ROOT, command

HOLD = "import sys, time; from pathlib import Path; from llm4rec_jax.runs.locks import Lock; "
HOLD += "held = Lock(Path(sys.argv[1]))"


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that has the lock."""
    code = f"{HOLD}; print('held', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_the_first_is_and_the_dead_hold_nothing(tmp_path):
    first = holder(tmp_path / "run")
    named = rf"run is worked in by process {first.pid} on {socket.gethostname()}, since \d{{4}}-.*another --workdir"
    with pytest.raises(FolderInUse, match=named):
        Lock(tmp_path / "run")
    first.kill()
    first.communicate()
    with Lock(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == os.getpid()
    Lock(tmp_path / "run").close()


def test_a_job_has_the_lock_of_the_sweep_that_started_it(tmp_path):
    """And keeps it when the sweep is killed; what the job starts does not."""
    again = f"{HOLD}; import subprocess; print(subprocess.call([sys.executable, '-c', sys.argv[2], sys.argv[1]]))"
    folder = tmp_path / "run"
    job = Job("token", ("-c", again, str(folder), HOLD), (str(folder),), str(ROOT))
    ended = wait(Process(job), 0.05)
    assert ended.code == 0
    assert "FolderInUse" in ended.output
    assert ended.output.splitlines()[-1] == "1"


def test_of_several_processes_the_first_has_the_lock(tmp_path, monkeypatch):
    with run_folder.locked(tmp_path):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with run_folder.locked(tmp_path):
            pass
        monkeypatch.setattr(jax, "process_index", lambda: 0)
        with pytest.raises(FolderInUse):
            run_folder.locked(tmp_path)
    run_folder.locked(tmp_path).close()


@pytest.mark.parametrize("name", ["sweep", "search"])
def test_sweeps_and_searches_refuse_too(tmp_path, config, name):
    trials = {"sweep": [], "search": ["--trials=1"]}[name]
    config.with_name("listed.py").write_text(
        config.read_text() + "\ndef sweep():\n    from experiments.sweeps.trials import Trial\n"
        "    return [Trial('a', 'id', {}, 'a')]\n\ndef search(trial):\n    return {}\n"
    )
    with Lock(tmp_path):
        done = command(name, f"--config={config.with_name('listed.py')}", f"--workdir={tmp_path}", *trials, check=False)
    assert done.returncode == 2
    assert f"is worked in by process {os.getpid()} on" in done.stderr


def test_two_runs_in_one_folder_and_the_end_of_the_first(tmp_path, config):
    """The second is refused whatever it wants to write; SIGTERM saves, says where, and exits with 0."""
    workdir = tmp_path / "run"
    arguments = [f"--config={config}:id", f"--workdir={workdir}", "--config.train.steps=100000"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    first = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    limit = time.monotonic() + 240
    while not any(r["step"] > 0 for r in journal.read(workdir / "metrics.jsonl")):
        assert first.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.1)
    for refused in (command("train", *arguments, check=False), command("evaluate", arguments[1], check=False)):
        assert refused.returncode == 2
        assert f"run is worked in by process {first.pid} on" in refused.stderr
        assert "Traceback" not in refused.stderr
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    step = json.loads(out.splitlines()[-1])["preempted_at_step"]
    assert step == latest_step(workdir) > 0
