"""Training goes on for hours in the same memory: `make soak` takes two, and any other number of SOAK_SECONDS."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from llm4rec_jax.training import metric_writer as journal
from llm4rec_jax.training.checkpoint import latest_step

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("SOAK_SECONDS", "120"))
# TensorStore 0.1.86 never frees what `KvStore.Spec.to_json` returns, and Orbax calls that for every array it saves:
# 0.4 kB each, and some more. Growth must stay within that, so that nothing of ours adds to it.
KB_AN_ARRAY = 1.5
EVAL_EVERY, CHECKPOINT_EVERY = 7, 3  # of tests.helpers.killed_run


def sample(process: int) -> tuple[float, int, int]:
    """Resident MB, threads and open files of a process."""
    folder = Path(f"/proc/{process}")
    pages = int((folder / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, *(len(list((folder / name).iterdir())) for name in ("task", "fd"))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_threads_and_files_stay_as_they_are(tmp_path):
    """Evaluations and checkpoints without end, and SIGTERM at last.

    The first third is left out: programs are compiled, and pools of memory fill. The Theil-Sen slope of the
    rest, the median of all pairs' slopes, and its 95 % interval are taken over the medians of forty stretches.

    A checkpoint is saved far more often than anyone would, so that what one costs shows.
    """
    code = "from pathlib import Path; import sys; from tests.helpers.killed_run import main; "
    code += "main(Path(sys.argv[1]), 10**9)"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    with (tmp_path / "log.txt").open("wb") as log:
        run = subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "run"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    (tmp_path / "run").mkdir()
    began = time.monotonic()
    samples = []
    while time.monotonic() - began < SECONDS:
        time.sleep(min(1.0, SECONDS / 600))
        assert run.poll() is None, (tmp_path / "log.txt").read_text()[-2000:]
        samples.append((time.monotonic() - began, *sample(run.pid)))
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 0

    seconds, memory, threads, files = np.array(samples[len(samples) // 3 :]).T
    stretches = [(float(np.median(s)), float(np.median(m))) for s, m in zip(*_parts(seconds, memory), strict=True)]
    slope, _, low, high = stats.theilslopes(*np.array(stretches).T[::-1])
    evaluations = sum(r["kind"] == "validation" for r in journal.read(tmp_path / "run" / "metrics.jsonl"))
    steps = latest_step(tmp_path / "run")
    assert steps is not None
    held = json.loads((tmp_path / "run" / "checkpoints" / "last" / str(steps) / "state" / "_METADATA").read_text())
    arrays = len(held["tree_metadata"])
    saves = sum(step % EVAL_EVERY == 0 or step % CHECKPOINT_EVERY == 0 for step in range(steps))
    # kB an array and checkpoint, from MB a second.
    share = 1e3 * low * seconds[-1] / saves / arrays
    figures = {
        "seconds": round(seconds[-1]), "steps": steps, "evaluations": evaluations, "checkpoints": saves,
        "arrays": arrays, "kB an array saved": round(float(share), 2),
        "MB": [round(float(m)) for m in (memory[0], np.median(memory), memory[-1])],
        "MB an hour": [round(3600 * float(s), 2) for s in (low, slope, high)],
        "threads": [int(threads.min()), int(threads.max())], "files": [int(files.min()), int(files.max())],
    }  # fmt: skip
    print(json.dumps(figures))
    (Path(os.environ.get("SOAK_FIGURES", tmp_path / "soak.json"))).write_text(json.dumps(figures) + "\n")
    assert evaluations > 3
    half = len(threads) // 2
    assert threads[half:].max() <= threads[:half].max()
    assert files[half:].max() <= files[:half].max()
    assert share < KB_AN_ARRAY, f"memory grows by {3600 * low:.1f} MB an hour or more"


def _parts(*columns: np.ndarray) -> list[list[np.ndarray]]:
    return [np.array_split(column, 40) for column in columns]
