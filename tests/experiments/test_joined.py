"""Commands run by several processes come to what one process comes to, write once, and end together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.cli import distributed, launch
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.training import metric_writer
from tests.helpers.commands import ROOT, command, last_line
from tests.helpers.joined import Joined
from tests.training.test_processes import free_port

OPTIONS = (
    "--config.loss.name=softmax", "--config.loss.num_negatives=3", "--config.train.log_every=1",
    "--config.train.dropout=False", "--config.train.schedule=constant",
)  # fmt: skip
# Longer than any test takes.
ENDLESS = "--config.train.steps=100000"


def records(workdir: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in metric_writer.read(workdir / "metrics.jsonl") if r["kind"] == kind]


def losses(workdir: Path) -> list[float]:
    return [r["loss"] for r in records(workdir, "train")]


def but_for_vectors(metrics: dict[str, float]) -> dict[str, float]:
    """Values that follow from ranks and lists; vectors differ in their last bits."""
    return {name: value for name, value in metrics.items() if "diversity" not in name}


def once_trained(started: Joined, workdir: Path, steps: int) -> None:
    while len(losses(workdir)) < steps:
        assert all(process.poll() is None for process in started.running), started.said(0, "err")
        time.sleep(0.1)


@pytest.fixture(scope="module")
def one(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process and one device."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    command("train", f"--config={config}:id", f"--workdir={workdir}", *OPTIONS)
    return workdir


def test_sigterm_to_one_stops_both_at_one_step_and_a_single_process_goes_on(config, one, tmp_path):
    workdir = tmp_path / "run"
    arguments = (f"--config={config}:id", f"--workdir={workdir}", *OPTIONS)
    started = Joined(tmp_path / "logs", "train", *arguments, ENDLESS)
    once_trained(started, workdir, 5)
    started.running[1].send_signal(signal.SIGTERM)
    assert started.wait() == [0, 0]
    stopped = max(int(folder.name) for folder in (workdir / "checkpoints" / "last").glob("[0-9]*"))
    assert f"SIGTERM: saved at step {stopped}" in started.said(0, "err")
    assert started.said(1, "err") == ""
    assert not (workdir / "result.json").exists()
    shared = min(stopped, len(losses(one)))
    np.testing.assert_allclose(losses(workdir)[:shared], losses(one)[:shared], rtol=1e-5)
    # One process on one device goes on from what two on two each have left.
    steps = stopped + 2
    held = run_folder.read(workdir / "config.json")
    held["train"]["steps"] = steps
    run_folder.write(workdir / "config.json", held)
    command("train", *arguments, f"--config.train.steps={steps}")
    assert len(losses(workdir)) == steps


@pytest.mark.long
def test_two_processes_train_and_evaluate_as_one_and_write_once(config, one, tmp_path):
    workdir = tmp_path / "run"
    layout = ("--config.mesh.fsdp=True", "--config.mesh.model=2")
    trained = Joined(tmp_path / "train", "train", f"--config={config}:id", f"--workdir={workdir}", *OPTIONS, *layout)
    trained.finish()
    np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-5)
    found, wanted = (run_folder.read(folder / "result.json") for folder in (workdir, one))
    for phase in ("validation", "test"):
        assert but_for_vectors(found[phase]) == but_for_vectors(wanted[phase])
        users = [pl.read_parquet(folder / f"per_user_{phase}.parquet") for folder in (workdir, one)]
        assert users[0].equals(users[1])
    assert last_line_of(trained.said(0)) == found
    assert "{" not in trained.said(1)
    assert trained.said(1, "err") == ""
    assert not list(workdir.rglob("*.tmp*"))
    steps = [r["step"] for r in records(workdir, "train")]
    assert steps == list(range(1, 13))

    again = Joined(tmp_path / "evaluate", "evaluate", f"--workdir={workdir}")
    again.finish()
    assert last_line_of(again.said(0)) == {phase: found[phase] for phase in ("validation", "test")}
    assert "{" not in again.said(1)
    alone = last_line(command("evaluate", f"--workdir={workdir}"))
    assert {p: but_for_vectors(m) for p, m in alone.items()} == {
        phase: but_for_vectors(found[phase]) for phase in ("validation", "test")
    }

    encoded = Joined(tmp_path / "encode", "encode", f"--workdir={workdir}", f"--out={tmp_path / 'two.npy'}")
    encoded.finish()
    assert "items.npy" not in encoded.said(1)
    command("encode", f"--workdir={workdir}", f"--out={tmp_path / 'one.npy'}")
    np.testing.assert_array_equal(*(np.load(tmp_path / f"{name}.npy") for name in ("one", "two")))


def last_line_of(output: str) -> dict[str, Any]:
    return json.loads(output.strip().splitlines()[-1])


@pytest.mark.long
def test_a_sweep_of_two_processes_runs_every_trial_in_both(config, tmp_path):
    study, workdir = config.parent / "sweep_of_two.py", tmp_path / "sweep"
    study.write_text(
        config.read_text()
        + """
from experiments.sweeps.trials import Trial

def sweep():
    few = {"train.steps": 4, "train.eval_every": 2}
    return [
        Trial("base", "frozen", few, group="base"),
        Trial("broken", "id", {**few, "train.metric": "nope"}, group="broken"),
        Trial("lora", "lora", {**few, "init_from": "base"}, group="lora"),
    ]
"""
    )
    swept = Joined(tmp_path / "logs", "sweep", f"--config={study}", f"--workdir={workdir}")
    assert swept.wait() == [2, 2]
    listed = json.loads((workdir / "sweep.json").read_text())["trials"]
    assert [trial["status"] for trial in listed] == ["finished", "failed", "finished"]
    assert "unknown validation metric 'nope'" in swept.said(0, "err")
    assert "lora" in swept.said(0)
    assert swept.said(1) == ""
    for trial in (listed[0], listed[2]):
        folder = workdir / trial["folder"]
        assert json.loads((folder / "environment.json").read_text())["processes"] == 2
        assert (folder / "process1" / "log.txt").exists()
        assert not (folder / "process1" / "result.json").exists()


@pytest.mark.parametrize("failing", [pytest.param(0, marks=pytest.mark.long), 1])
def test_an_error_in_one_process_ends_the_other(config, tmp_path, failing):
    workdir = tmp_path / "run"
    arguments = [f"--config={config}:id", f"--workdir={workdir}", *OPTIONS, ENDLESS]
    wrong = {failing: ["--config.train.metric=nope"]}
    started = Joined(tmp_path / "logs", "train", *arguments, more=wrong)
    codes = started.wait()
    assert codes[failing] == 2
    assert codes[1 - failing] != 0
    assert "unknown validation metric 'nope'" in started.said(failing, "err")


@pytest.mark.long
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_other_and_both_go_on(config, one, tmp_path, killed):
    workdir = tmp_path / "run"
    arguments = (f"--config={config}:id", f"--workdir={workdir}", *OPTIONS)
    started = Joined(tmp_path / "killed", "train", *arguments, ENDLESS)
    once_trained(started, workdir, 8)
    started.running[killed].kill()
    codes = started.wait()
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] != 0
    started = Joined(tmp_path / "again", "train", *arguments, ENDLESS)
    once_trained(started, workdir, len(losses(one)))
    for process in started.running:
        process.send_signal(signal.SIGTERM)
    assert started.wait() == [0, 0]
    np.testing.assert_allclose(losses(workdir)[: len(losses(one))], losses(one), rtol=1e-5)


def test_sigterm_before_training_ends_a_process_as_it_does_alone(config, tmp_path):
    """JAX would take it for a hint that nobody reads."""
    script = (
        "import os, signal, sys; from absl import flags; from experiments.cli import distributed; "
        "flags.FLAGS(sys.argv); "
        "distributed.join(); os.kill(os.getpid(), signal.SIGTERM); print('alive')"
    )
    started = Joined(tmp_path, "", script=script, processes=2)
    assert started.wait() == [-signal.SIGTERM] * 2
    assert started.said(0) == started.said(1) == ""


SLURM = {"SLURM_JOB_ID": "4321", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2"}
RANKS = {"SLURM": ("SLURM_PROCID", "SLURM_LOCALID"), "OMPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")}


@pytest.mark.parametrize("cluster", [SLURM, pytest.param(OPEN_MPI, marks=pytest.mark.long)])
def test_clusters_are_detected(cluster):
    script = (
        "import sys; from absl import flags; from experiments.cli import distributed; flags.FLAGS(sys.argv); "
        "print(distributed.index_and_count(), distributed.flags_of_others())"
    )
    ranks = RANKS[next(iter(cluster)).split("_")[0]]
    detected(script, [{**cluster, **dict.fromkeys(ranks, str(i))} for i in range(2)])


def detected(script: str, variables: list[dict[str, str]]) -> None:
    """Runs a script in several processes, which has to say which of them it is and the flags of others."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, "--distributed"],
            cwd=ROOT, env={**os.environ, **own}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for own in variables
    ]  # fmt: skip
    for i, process in enumerate(running):
        out, err = process.communicate(timeout=120)
        assert out == f"({i}, {len(variables)}) ('--distributed', '--heartbeat=100')\n", err


@pytest.mark.long
def test_a_tpu_pod_of_gke_is_detected():
    """Finds the others by the variables that GKE sets, on machines that JAX takes for those of a TPU."""
    script = (
        "import sys, jax; from absl import flags; from experiments.cli import distributed; flags.FLAGS(sys.argv); "
        "from jax._src.clusters import cloud_tpu_cluster; cloud_tpu_cluster.running_in_cloud_tpu_vm = True; "
        "distributed.join(); print((jax.process_index(), jax.process_count()), distributed.flags_of_others())"
    )
    gke = {"TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.1", "JAX_COORDINATOR_PORT": str(free_port())}
    one_slice = {"MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1", "MEGASCALE_NUM_SLICES": "1", "MEGASCALE_SLICE_ID": "0"}
    detected(script, [{**gke, **one_slice, "JAX_PLATFORMS": "cpu", "TPU_WORKER_ID": str(i)} for i in range(2)])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"process": 0}, "--coordinator, --processes missing"),
        ({"coordinator": "h:1", "processes": 2, "process": 2}, "--process=2 of 2: they count from 0"),
        ({"coordinator": "h:1", "processes": 2, "process": 1, "distributed": True}, "give either"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(given, words):
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**given), pytest.raises(ValueError, match=words):
        distributed.wanted()


def test_what_several_processes_cannot_do_is_refused(tmp_path):
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(workers=2), pytest.raises(ValueError, match="one trial after another"):
        launch.check_several(1)
    done = command("recommend", f"--workdir={tmp_path}", "--distributed", "--user=u1", check=False)
    assert done.returncode == 2
    assert "runs in one process" in done.stderr
    assert "Traceback" not in done.stderr
