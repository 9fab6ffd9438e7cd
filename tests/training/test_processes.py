"""Two processes of two devices each, joined over loopback, train and rank as one process of one device."""

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llm4rec_jax.training import metric_writer as journal
from tests.helpers.compiling import environment

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(workdir: Path, losses: str, processes: int, devices: int) -> None:
    workdir.mkdir()
    port = free_port()
    arguments = [[str(workdir), losses, str(i), str(processes), str(port)] for i in range(processes)]
    logs = [(workdir / f"log{i}.txt").open("w+") for i in range(processes)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.process_run", *a], cwd=ROOT, env=environment(devices), stderr=log
        )
        for a, log in zip(arguments, logs, strict=True)
    ]
    codes = [process.wait(300) for process in started]
    for log in logs:
        log.seek(0)
    assert codes == [0] * processes, "\n".join(log.read() for log in logs)
    for log in logs:
        log.close()


LOSSES = ("in_batch", "softmax")
RATED = ("one/rating/found0", "two/rating/found0", "two/rating/found1")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    return both_ways(folder, [*LOSSES, "rating"])


def both_ways(folder: Path, losses: Sequence[str]) -> Path:
    run(folder / "one", ",".join(losses), 1, 1)
    run(folder / "two", ",".join(losses), 2, 2)
    return folder


@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_train_and_rank_as_one(ran, loss):
    check(ran, loss)


def test_two_processes_rate_as_one(ran):
    one, first, second = (json.loads((ran / f"{path}.json").read_text()) for path in RATED)
    assert first == second == pytest.approx(one, rel=1e-5)
    check_curves(ran, "rating")


@pytest.mark.long
def test_two_processes_train_against_the_catalogue_as_one(tmp_path):
    check(both_ways(tmp_path, ["full_softmax"]), "full_softmax")


def check(ran: Path, loss: str) -> None:
    def found(name: str, process: int) -> dict:
        return json.loads((ran / name / loss / f"found{process}.json").read_text())

    one, first, second = found("one", 0), found("two", 0), found("two", 1)
    assert first == second
    assert first["ranks"] == one["ranks"]
    # All but the diversity of the vectors, which differ in the last bits, follows from the ranks.
    for name, value in first["summary"].items():
        assert value == (pytest.approx(one["summary"][name], rel=1e-5) if "diversity" in name else one["summary"][name])
    check_curves(ran, loss)


def check_curves(ran: Path, loss: str) -> None:
    curves = [
        [r["loss"] for r in journal.read(ran / name / loss / "metrics.jsonl") if r["kind"] == "train"]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(*curves, rtol=1e-5)
