"""The output of commands for programs and for people: --json, --quiet, --notify, signals, and progress."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm4rec_jax import progress
from llm4rec_jax.progress import Meter, track
from tests.helpers.commands import ROOT, command
from tests.helpers.compiling import environment


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    workdir = tmp_path_factory.mktemp("runs") / "id"
    note = tmp_path_factory.mktemp("notes") / "note.py"
    note.write_text(
        "import json, os, sys\n"
        "told = {k: v for k, v in os.environ.items() if k.startswith('LLM4REC_')}\n"
        "json.dump(told, open(sys.argv[1], 'w'))\n"
    )
    short = ["--config.train.steps=2", "--config.train.eval_every=2"]
    flags = ["--quiet", f"--notify={sys.executable} {note} {workdir.parent / 'told.json'}"]
    return workdir, command("train", f"--config={config}:id", f"--workdir={workdir}", *short, *flags)


def test_a_quiet_command_prints_its_result_alone_and_notifies(trained):
    workdir, done = trained
    assert "step" not in done.stderr
    assert json.loads(done.stdout)["test"]["users"] == 48
    told = json.loads((workdir.parent / "told.json").read_text())
    assert told["LLM4REC_EXIT_CODE"] == "0"
    assert int(told["LLM4REC_SECONDS"]) >= 0
    assert told["LLM4REC_COMMAND"].startswith("train --config=")


def test_results_are_one_json_object(trained, tmp_path):
    workdir, _ = trained
    listed = command("recommend", f"--workdir={workdir}", "--user=u3", "--k=2", "--json")
    shown = command("recommend", f"--workdir={workdir}", "--user=u3", "--k=2").stdout
    assert "\x1b" not in shown
    found = json.loads(listed.stdout)
    assert len(found["history"]) == 9
    assert [item["title"] in shown for item in found["recommended"]] == [True, True]
    assert f"{found['recommended'][0]['score']:.3f}" in shown
    written = command("encode", f"--workdir={workdir}", f"--out={tmp_path / 'v.npy'}", "--json")
    assert json.loads(written.stdout)["items"] == 40
    first, *_ = json.loads(command("tables", workdir, "--json").stdout)["rows"]
    assert first["kind"] == "test"
    assert 0 < float(first["mean"]) <= 1


def test_messages_of_a_command_with_json_go_to_standard_error(config, tmp_path):
    fit = ["--config.baseline.name=popularity", "--json", "--notify=no-such-program"]
    done = command("train", f"--config={config}:id", f"--workdir={tmp_path}", *fit)
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["test"]["users"] == 48
    assert "leave-one-out" in done.stderr
    assert "warning: --notify=no-such-program: " in done.stderr


@pytest.mark.long
def test_ctrl_c_saves_and_the_same_command_goes_on(config, tmp_path):
    arguments = [sys.executable, "-m", "experiments.train", f"--config={config}:id", f"--workdir={tmp_path}"]
    run = subprocess.Popen(
        [*arguments, "--config.train.steps=100000"],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    limit = time.monotonic() + 240
    while not list(tmp_path.glob("checkpoints/last/[1-9]*")):
        assert run.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert f"SIGINT: saved at step {json.loads(out.splitlines()[-1])['preempted_at_step']}; the same command" in err
    assert "Traceback" not in err


def test_long_work_writes_a_line_with_the_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in track(range(3), "encode", 6, "texts", lambda thing: 2):
        now[0] += 7.0
    assert capsys.readouterr().err == "encode: 4 of 6 texts, 7 s left\n"
    monkeypatch.setattr(progress, "_state", {"quiet": True, "bar": False})
    with Meter("encode", 2) as meter:
        now[0] += 20.0
        meter.update(1)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_one_bar_at_a_time(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert progress.take_terminal()
    assert not progress.take_terminal()
    with Meter("encode", 2):
        pass
    assert not progress.take_terminal()
    progress.release_terminal()
    with Meter("encode", 2):
        assert not progress.take_terminal()
    assert progress.take_terminal()
    progress.release_terminal()
