"""Two processes of two devices each, joined over loopback, train and rank as one process of one device."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llm4rec_jax import journal
from tests.compiling import environment

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(workdir: Path, loss: str, processes: int, devices: int) -> list[dict]:
    workdir.mkdir()
    port = free_port()
    arguments = [[str(workdir), loss, str(i), str(processes), str(port)] for i in range(processes)]
    logs = [(workdir / f"log{i}.txt").open("w+") for i in range(processes)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.process_run", *a], cwd=ROOT, env=environment(devices), stderr=log
        )
        for a, log in zip(arguments, logs, strict=True)
    ]
    codes = [process.wait(300) for process in started]
    for log in logs:
        log.seek(0)
    assert codes == [0] * processes, "\n".join(log.read() for log in logs)
    for log in logs:
        log.close()
    return [json.loads((workdir / f"summary{i}.json").read_text()) for i in range(processes)]


@pytest.mark.parametrize("loss", ["catalogue", "in_batch"])
def test_two_processes_train_and_rank_as_one(tmp_path, loss):
    (one,) = run(tmp_path / "one", loss, 1, 1)
    first, second = run(tmp_path / "two", loss, 2, 2)
    assert first == second
    # All but the diversity of the vectors, which differ in the last bits, follows from the ranks.
    assert {k: v for k, v in first.items() if "diversity" not in k} == {
        k: v for k, v in one.items() if "diversity" not in k
    }
    curves = [
        [r["loss"] for r in journal.read(tmp_path / name / "metrics.jsonl") if r["kind"] == "train"]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(*curves, rtol=1e-5)
