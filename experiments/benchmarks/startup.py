"""Seconds from the command to the end of the first training step, with empty caches and with those of a run before."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks import machine

MODEL = "configs/movielens_100k.py:lora"


def run() -> Iterator[dict[str, Any]]:
    """LoRA of MiniLM-L6 on MovieLens-100k."""
    yield measure(f"--config={MODEL}")


class Start(NamedTuple):
    """Seconds from the command to the beginning of the first step, all being ready, and to its end."""

    ready: float
    done: float


def measure(*arguments: str, repeats: int = 3) -> dict[str, Any]:
    """Each start is a new run in a new folder; only the first finds no tokens and no compiled programs.

    Args:
      arguments: of `experiments.train`, without --workdir.
      repeats: starts that find what the first has left; their median counts.
    """
    with tempfile.TemporaryDirectory() as folder:
        cold, *warm = [start(Path(folder), Path(folder) / str(i), arguments) for i in range(1 + repeats)]
    return {
        "run": " ".join(arguments),
        "cold_to_first_step_s": cold.ready,
        "cold_to_its_end_s": cold.done,
        "warm_to_first_step_s": statistics.median(each.ready for each in warm),
        "warm_to_its_end_s": statistics.median(each.done for each in warm),
        "warm_starts": repeats,
    }


def start(caches: Path, workdir: Path, arguments: Sequence[str]) -> Start:
    """Begins a run and ends it when its first step is done."""
    command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}", *arguments]
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--config.train.log_every=1"],
        env=machine.with_caches_in(caches),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    with process:
        for line in process.stderr:
            said.append(line)
            if line.startswith("step 1: loss"):
                seconds = time.perf_counter() - begun
                process.kill()
                break
        else:
            raise RuntimeError(f"{' '.join(command)} ended before its first step:\n{''.join(said)}")
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    at = {record["kind"]: record["seconds"] for record in records}
    return Start(seconds - (at["train"] - at["program"]), seconds)
