"""SIGKILL at any instant loses nothing: the run, started again, ends with the same bits."""

import random
import subprocess
import sys
import time
from pathlib import Path

import orbax.checkpoint as ocp
import pytest

from llm4rec_jax import journal
from tests.compiling import environment
from tests.test_train import same_bits

ROOT = Path(__file__).parents[1]
STEPS = 60


def start(workdir: Path, *, compiles: bool = False) -> subprocess.Popen[bytes]:
    # Only a run that nobody kills writes to the cache of compiled programs: a process that is killed while it writes
    # leaves half an entry.
    variables = {
        **environment(),
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0" if compiles else "1e9",
    }
    with (workdir.parent / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.killed_run", str(workdir), str(STEPS)], cwd=ROOT, env=variables, stderr=log
        )


def finish(workdir: Path) -> None:
    run = start(workdir, compiles=True)
    assert run.wait(600) == 0, (workdir.parent / "log.txt").read_text()


def state(workdir: Path):
    with ocp.CheckpointManager(workdir / "checkpoints" / "last") as manager:
        assert manager.latest_step() == STEPS
        return manager.restore(STEPS, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]


def steps_done(workdir: Path) -> int:
    return max((r["step"] for r in journal.read(workdir / "metrics.jsonl")), default=-1)


def kill_again_and_again(workdir: Path, kills: int, seed: int) -> int:
    """Kills at random instants, each start having come further than the last; returns how many hit a live run."""
    rng, hits = random.Random(seed), 0
    for _ in range(kills):
        run, before = start(workdir), steps_done(workdir)
        while run.poll() is None and steps_done(workdir) <= before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.25))
        run.kill()
        hits += run.wait() == -9
    return hits


def check(tmp_path: Path, kills: int, seed: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    finish(tmp_path / "whole")
    hits = kill_again_and_again(tmp_path / "killed", kills, seed)
    assert hits >= 2
    finish(tmp_path / "killed")
    same_bits(state(tmp_path / "whole"), state(tmp_path / "killed"))
    best = [sorted(p.name for p in (tmp_path / f / "checkpoints" / "best").glob("[0-9]*")) for f in ("whole", "killed")]
    assert best[0] == best[1]
    print(f"{hits} of {kills} kills hit a run that was going on")


@pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring:UserWarning")
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    check(tmp_path, kills=3, seed=0)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring:UserWarning")
def test_thirty_kills_end_with_the_same_bits(tmp_path):
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        check(tmp_path / str(seed), kills=10, seed=seed)
