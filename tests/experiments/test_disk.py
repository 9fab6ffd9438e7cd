"""A disk that is full, read-only or gone ends a run with what to do about it, and harms nothing that was saved."""

import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from llm4rec_jax import peft
from llm4rec_jax.checksums import MANIFEST, check_manifest
from llm4rec_jax.io import NotWritten, replacing
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.training.checkpoint import latest_step
from llm4rec_jax.training.log import TrainingLog
from tests.helpers import made_up_runs, tiny
from tests.helpers.commands import command
from tests.helpers.training import train
from tests.training.test_loop import same_bits

STEPS = 6
Mount = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Mount]]:
    """A disk of its own, and a function that changes its options, such as size=1m or ro."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a disk of its own needs the right to mount one: {made.stderr.strip()}")
    yield folder, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    subprocess.run(["umount", "-l", folder], check=True)


def trained(workdir: Path):
    """A run of a few steps, and a checkpoint after each: its last state."""
    split = tiny.split()
    model = recommender(num_items=split.dataset.num_items, users="mean", width=16)
    train(
        model, peft.create("frozen"), init(model, jax.random.key(0)), split, workdir,
        loss="softmax", num_negatives=4, steps=STEPS, batch_size=16, history=8, eval_every=3, checkpoint_every=1,
        log_every=1,
    )  # fmt: skip
    with ocp.CheckpointManager(workdir / "checkpoints" / "last") as manager:
        return manager.restore(STEPS, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]


def fill(disk: Path) -> None:
    """Leaves no room, but what is left in the last pages of files."""
    with pytest.raises(OSError, match="No space left"):
        (disk / "filler").write_bytes(bytes(2**27))


def at_step(step: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Acts once, when training has come to a step."""
    advance = TrainingLog.advance

    def acting(self: TrainingLog, now: int) -> None:
        advance(self, now)
        if now == step:
            monkeypatch.setattr(TrainingLog, "advance", advance)
            act()

    monkeypatch.setattr(TrainingLog, "advance", acting)


def last_good(workdir: Path) -> int:
    step = latest_step(workdir)
    assert step is not None
    check_manifest(workdir / "checkpoints" / "last" / str(step))
    return step


# Orbax leaves what it could not write to the garbage collector, to which closing such a file fails once more.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring:UserWarning")
def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(disk, tmp_path, monkeypatch):
    folder, _ = disk
    (tmp_path / "whole").mkdir()
    at_step(4, lambda: fill(folder), monkeypatch)
    with pytest.raises(NotWritten, match=rf"cannot write {folder}/run/.* \(No space left on device\): make room"):
        trained(folder / "run")
    assert last_good(folder / "run") in (2, 3)  # that of step 3 may not have been written yet
    (folder / "filler").unlink()
    same_bits(trained(folder / "run"), trained(tmp_path / "whole"))


def test_a_full_disk_is_told_before_anything_is_computed_and_holds_no_scratch_file(disk, config, tmp_path):
    folder, _ = disk
    fill(folder)
    runs = made_up_runs.sweep(tmp_path / "sweep", a=0.0, b=0.1)
    for name, path, arguments in (
        ("train", folder / "run", (f"--config={config}:id", f"--workdir={folder / 'run'}")),
        ("tables", folder / "t.md", (runs, f"--out={folder / 't.md'}")),
    ):
        done = command(name, *arguments, check=False)
        assert done.returncode == 2, done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith(f"error: cannot write {path}")
        assert "(No space left on device): make room" in last
    full = pytest.raises(NotWritten, match=r"cannot write .*x\.npy \(No space left on device\)")
    with full, replacing(folder / "x.npy") as scratch:
        np.save(scratch, np.zeros(10**6))
    held = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in held} <= {"filler", "lock"}


@pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring:UserWarning")
def test_a_read_only_disk_is_told_before_anything_is_computed(disk, config):
    folder, remount = disk
    state = trained(folder / "run")
    remount("ro")
    for again in (lambda: trained(folder / "run"), lambda: trained(folder / "new")):
        with pytest.raises(NotWritten, match=rf"cannot write {folder}/.*Read-only file system.*make it writable"):
            again()
    done = command("train", f"--config={config}:id", f"--workdir={folder / 'run'}", check=False)
    assert done.returncode == 2
    assert f"error: cannot write {folder}/run/lock (Read-only file system): make room" in done.stderr
    assert last_good(folder / "run") == STEPS
    remount("rw")
    same_bits(state, trained(folder / "run"))


def test_a_folder_that_vanishes_is_not_made_again(tmp_path, monkeypatch):
    def vanish() -> None:
        # Not while files are written: TensorStore makes the folders of each anew.
        while not (tmp_path / "run" / "checkpoints" / "last" / "3" / MANIFEST).exists():
            time.sleep(0.01)
        shutil.move(tmp_path / "run", tmp_path / "elsewhere")

    at_step(4, vanish, monkeypatch)
    (tmp_path / "run").mkdir()
    with pytest.raises(NotWritten, match=rf"cannot write {tmp_path}/run/.*not there any more.*bring the folder back"):
        trained(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_journal_on_a_full_disk_neither_waits_nor_loses_what_it_had(disk):
    folder, _ = disk
    with TrainingLog(folder, -1, 10, 4, 0.0) as journal:
        journal.write("train", 0, {"loss": 1.0})
        fill(folder)
        with pytest.raises(NotWritten, match=rf"cannot write {folder}/(metrics|tensorboard).*No space left"):
            deque(journal.write("train", step, {"loss": 1.0}) for step in range(10_000))
    (folder / "filler").unlink()
    with TrainingLog(folder, 10_000, 10, 4, 0.0) as journal:
        assert journal.records >= 1
