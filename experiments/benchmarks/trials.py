"""Trials in one program against trials one after another: whole sweeps, with start, compilation and evaluation."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments.benchmarks import machine

_TRIALS = flags.DEFINE_list("trials", ["1", "4", "16"], "For the benchmark `trials`: numbers of LoRA trials.")

# Trials that differ in their learning rate, by the arguments of configs/movielens_100k.py.
STUDY = '''
"""Trials that differ in their learning rate."""

from configs import movielens_100k
from experiments.sweeps.trials import Trial


def get_config():
    config = movielens_100k.get_config("{model}")
    config.train.steps = config.train.eval_every = config.train.checkpoint_every = {steps}
    config.train.warmup = 0
    config.update_from_flattened_dict({overrides!r})
    return config


def sweep():
    return [
        Trial(str(i), "", {{"train.learning_rate": 1e-3 * 1.1**i}}, group=str(i)) for i in range({trials})
    ]
'''


class Case(NamedTuple):
    """A model of configs/movielens_100k.py, the number of trials, their steps, and the keys that differ."""

    model: str
    trials: int
    steps: int
    overrides: Mapping[str, Any] = {}


# LoRA tunes the last layer; states below it are computed once and held once.
_LAST_LAYER = {"peft.options.lora.target": r"layer_5/.*", "train.batch_size": 32, "loss.name": "in_batch"}
IDS = Case("id", 8, 60)


def run() -> Iterator[dict[str, Any]]:
    """Trials of ids and of LoRA, as two sweeps in fresh folders, each with caches of its own."""
    overrides = {**_LAST_LAYER, "encoder.dtype": machine.dtype()}
    yield from measure(IDS, *(Case("lora", int(trials), 8, overrides) for trials in _TRIALS.value))


def measure(*cases: Case) -> Iterator[dict[str, Any]]:
    """See `run`."""
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            alone, apart = _sweep(case, Path(folder), 1)
            together, beside = _sweep(case, Path(folder), case.trials)
        yield {
            "model": case.model,
            "trials": case.trials,
            "steps": case.steps,
            "one_by_one_s": alone,
            "together_s": together,
            "one_by_one_per_hour": 3600 * case.trials / alone,
            "together_per_hour": 3600 * case.trials / together,
            "ratio": alone / together,
            "largest_relative_difference_of_losses": max(
                abs(a - b) / abs(a) for a, b in zip(apart, beside, strict=True)
            ),
        }


def _sweep(case: Case, folder: Path, together: int) -> tuple[float, list[float]]:
    """Seconds of a sweep, and the last training loss of every trial."""
    study = folder / "study.py"
    study.write_text(
        STUDY.format(model=case.model, steps=case.steps, trials=case.trials, overrides=dict(case.overrides))
    )
    workdir = folder / f"together-{together}"
    start = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.sweep",
            f"--config={study}",
            f"--workdir={workdir}",
            f"--together={together}",
        ],
        env=machine.with_caches_in(folder / f"caches-{together}"),
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise RuntimeError(f"the sweep of {case} failed:\n{done.stderr}")
    losses = []
    for i in range(case.trials):
        lines = map(json.loads, (workdir / "by_name" / str(i) / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if line["kind"] == "train"][-1])
    return seconds, losses
