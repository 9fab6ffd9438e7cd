"""SIGKILL at any instant loses nothing: the run, started again, ends with the same bits."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import pytest

from llm4rec_jax.checksums import MANIFEST
from llm4rec_jax.training import metric_writer as journal
from tests.helpers.compiling import environment
from tests.training.test_loop import same_bits
from tests.training.test_processes import free_port

ROOT = Path(__file__).parents[2]
STEPS = 60


def start(workdir: Path, processes: int, workers: int, *, compiles: bool = False) -> list[subprocess.Popen[bytes]]:
    # Only a run that nobody kills writes to the cache of compiled programs: a process that is killed while it writes
    # leaves half an entry.
    variables = {
        **environment(2),
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0" if compiles else "1e9",
    }
    port = free_port() if processes > 1 else 0
    with (workdir.parent / "log.txt").open("ab") as log:
        return [
            subprocess.Popen(
                [sys.executable, "-m", "tests.helpers.killed_run"]
                + [str(a) for a in (workdir, STEPS, i, processes, port, workers)],
                cwd=ROOT, env=variables, stderr=log,
            )
            for i in range(processes)
        ]  # fmt: skip


def finish(workdir: Path, processes: int, workers: int) -> None:
    for run in start(workdir, processes, workers, compiles=True):
        assert run.wait(600) == 0, (workdir.parent / "log.txt").read_text()


def state(workdir: Path):
    """The last state, on one device, whatever mesh it was saved from."""
    handlers = {"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.CheckpointManager(workdir / "checkpoints" / "last", item_handlers=handlers) as manager:
        assert manager.latest_step() == STEPS
        held = manager.item_metadata(STEPS).state
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), held)
        return manager.restore(STEPS, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))["state"]


def steps_done(workdir: Path) -> int:
    return max((r["step"] for r in journal.read(workdir / "metrics.jsonl")), default=-1)


def half_written(workdir: Path) -> set[Path]:
    """Checkpoints that are not whole: they get their name at the end, and their manifest then."""
    steps = list((workdir / "checkpoints").glob("*/*"))
    return {step for step in steps if not (step / MANIFEST).exists()}


def kill_again_and_again(workdir: Path, kills: int, seed: int, processes: int, workers: int) -> tuple[int, int]:
    """Kills at random instants, each start having come further than the last, one process or all of them.

    Returns how many hit a live run, and how many of those hit it while it wrote a checkpoint.
    """
    rng, hits, while_saving = random.Random(seed), 0, 0
    for _ in range(kills):
        runs, before, half = start(workdir, processes, workers), steps_done(workdir), half_written(workdir)
        while all(run.poll() is None for run in runs) and steps_done(workdir) <= before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.25))
        first = rng.choice(runs)
        workers_of_run = children(runs)
        first.kill()
        # One that has lost another cannot go on: it waits, or aborts, until somebody ends it.
        time.sleep(rng.choice([0, 0.1]))
        for run in runs:
            run.kill()
        codes = [run.wait() for run in runs]
        assert ended(workers_of_run), "input workers outlive what they work for"
        if first.returncode == -signal.SIGKILL:
            hits += 1
            while_saving += bool(half_written(workdir) - half)
        assert set(codes) <= {0, -signal.SIGKILL, -signal.SIGABRT}, (workdir.parent / "log.txt").read_text()
    return hits, while_saving


def children(processes: list[subprocess.Popen[bytes]]) -> set[int]:
    """The processes that these have started, which make batches."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [map(int, line.split()) for line in listed.splitlines()]
    return {pid for pid, parent in pairs if parent in {process.pid for process in processes}}


def ended(pids: set[int]) -> bool:
    """Returns whether the processes end within half a minute."""
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        listed = subprocess.run(["ps", "-e", "-o", "pid="], capture_output=True, text=True, check=True).stdout
        if pids.isdisjoint(map(int, listed.split())):
            return True
        time.sleep(0.1)
    return False


def check(tmp_path: Path, kills: int, seed: int, processes: int = 1, workers: int = 0) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    finish(tmp_path / "whole", processes, 0)
    hits, while_saving = kill_again_and_again(tmp_path / "killed", kills, seed, processes, workers)
    assert hits >= kills / 2
    finish(tmp_path / "killed", processes, workers)
    same_bits(state(tmp_path / "whole"), state(tmp_path / "killed"))
    best = [sorted(p.name for p in (tmp_path / f / "checkpoints" / "best").glob("[0-9]*")) for f in ("whole", "killed")]
    assert best[0] == best[1]
    print(
        f"{processes} processes, {workers} input workers: {hits} of {kills} kills hit a live run, {while_saving} as it "
        "wrote a checkpoint"
    )


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    check(tmp_path, kills=3, seed=0)


def test_processes_that_make_batches_end_with_a_run_that_is_killed(tmp_path):
    (run,) = start(tmp_path / "run", 1, 1)
    while not children([run]):
        assert run.poll() is None, (tmp_path / "log.txt").read_text()
        time.sleep(0.01)
    while steps_done(tmp_path / "run") < 1:
        assert run.poll() is None, (tmp_path / "log.txt").read_text()
        time.sleep(0.01)
    workers = children([run])
    run.kill()
    run.wait()
    assert ended(workers)


@pytest.mark.long
@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 0)])
def test_thirty_kills_end_with_the_same_bits(tmp_path, processes, workers):
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        check(tmp_path / str(seed), 10, seed, processes, workers)
