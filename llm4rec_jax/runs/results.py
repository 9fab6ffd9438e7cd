"""From a trained state to the run's numbers: validation and test metrics, and every user's."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm4rec_jax import sharding
from llm4rec_jax.evaluation import evaluate
from llm4rec_jax.inference.scorer import Scorer
from llm4rec_jax.peft import count
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.sharding import digest
from llm4rec_jax.training import metric_writer as journal
from llm4rec_jax.training.checkpoint import Checkpoints
from llm4rec_jax.training.runs import separate


def evaluate_run(assembly: Assembly, scorer: Scorer, workdir: Path) -> dict[str, dict[str, float]]:
    """Evaluates on validation and test, and writes `per_user_*.parquet`.

    Where the run has ended, the metrics are compared with its result.json before any file is replaced.

    Returns:
      {"validation": {metric: value}, "test": …}.

    Raises:
      ValueError: a trained model gives all items one score, whoever the user is.
      RunFolderError: the metrics are not those of result.json.
    """
    found, tables = {}, {}
    for phase in ("validation", "test"):
        result = evaluate.evaluate(scorer, assembly.split, phase, mesh=assembly.mesh, beyond_accuracy=True)
        _check_constant(result.summary, phase, assembly.config.baseline.name)
        tables[phase] = result.per_user
        found[phase] = {name: float(value) for name, value in result.summary.items()}
    _check_result(found, workdir / "result.json")
    for phase, table in tables.items():
        run_folder.write_table(workdir / f"per_user_{phase}.parquet", table)
    return found


def _check_result(found: Mapping[str, Mapping[str, float]], file: Path) -> None:
    """Compares metrics with those of an ended run; ranks may differ a little from one kind of device to another."""
    if not file.exists():
        return
    result = run_folder.read(file)
    for phase, metrics in found.items():
        for name, value in metrics.items():
            known = result.get(phase, {}).get(name, value)
            if not math.isclose(value, known, rel_tol=0.01, abs_tol=0.005):
                raise run_folder.RunFolderError(
                    f"{file} has {phase} {name} = {known:.6g}, and evaluated again it is {value:.6g}: the checkpoint, "
                    "the encoder, the tokenizer or the data is not the run's any more. No file was replaced; put back "
                    "what was changed"
                )


def _check_constant(summary: Mapping[str, float], phase: str, baseline: str | None) -> None:
    """Says loudly where a user's candidates all have one score; a baseline may have nothing to tell them apart by."""
    constant, users = summary["users_constant"], summary["users"]
    if not constant:
        return
    what = f"{phase}: all candidates have one score for {constant:.0f} of {users:.0f} users"
    if baseline is None and constant == users:
        raise ValueError(
            f"{what}: the model has collapsed, and its figures say nothing. Lower the learning rate, or look at what "
            "it reads"
        )
    if jax.process_index() == 0:
        print(f"warning: {what}: every target of theirs ranks last", file=sys.stderr)


def untrained(seconds: float) -> dict[str, Any]:
    """What result.json says of the costs of a baseline, which has no steps."""
    return {
        "best_step": 0,
        "steps": 0,
        "parameters": {"trainable": 0, "delta": 0, "frozen": 0},
        "seconds": seconds,
        "step": {"seconds": 0.0, "flops": 0.0, "bytes": 0, "programs": 0},
    }


def trained(best_step: int, steps: int, trainable: Mapping[str, Any], frozen: Any) -> dict[str, Any]:
    """What result.json says of what was trained: {"delta": …, "params": …} over frozen parameters."""
    return {
        "best_step": best_step,
        "steps": steps,
        "parameters": {
            "trainable": count(trainable),
            "delta": count(trainable["delta"]),
            "frozen": count(frozen),
        },
    }


def costs(workdir: Path, batch_size: int, together: int = 1) -> dict[str, Any]:
    """Seconds in all, and of a step: its median time, and FLOPs and bytes of its costliest program.

    Beside them how many records the journal has, by which it is seen when some are lost. Where none is of training, a
    damaged journal having been removed after the last step, what it had is not there.

    Args:
      workdir: of the run, with its journal.
      batch_size: examples a step.
      together: how many runs were trained in its programs; the costs are its share.
    """
    records = journal.read(workdir / "metrics.jsonl")
    programs = [r for r in records if r["kind"] == "program"]
    rates = [r["examples_per_second"] for r in records if r["kind"] == "train"]
    return {
        "records": len(records),
        "together": together,
        "seconds": records[-1]["seconds"] / together if records else 0.0,
        "step": _costs_of_a_step(programs, rates, batch_size, together) if programs and rates else None,
    }


def _costs_of_a_step(
    programs: Sequence[Mapping[str, Any]], rates: Sequence[float], batch_size: int, together: int
) -> dict[str, Any]:
    found = {
        "seconds": batch_size / float(np.median(rates)) / together,
        "bytes": max(r["bytes"] for r in programs) / together,
        "programs": max(r["number"] for r in programs),
    }
    # XLA does not count what a loop repeats.
    if flops := [r["flops"] for r in programs if "flops" in r]:
        found["flops"] = max(flops) / together
    return found


def restored(workdir: Path) -> tuple[Assembly, dict[str, Any], Any]:
    """The best checkpoint of a finished run: (assembly, parameters, delta)."""
    config: Any = run_folder.config_of(workdir)
    # It was trained on some devices, and is looked at on any.
    config.mesh.model = 1
    assembly = Assembly(config)
    run_folder.check_data(assembly, workdir)
    trainable, frozen = separate(assembly.method, assembly.params(), jax.random.key(0))
    checkpoints = Checkpoints(workdir, digest(frozen["params"]))
    # Once there is a result, it is of that state, whatever became of `last` since.
    ended = workdir / "result.json"
    best = (run_folder.read(ended) if ended.exists() else checkpoints.record("last"))["best_step"]
    trainable = checkpoints.restore("best", sharding.place(trainable, assembly.mesh), best).state
    checkpoints.close()
    return assembly, {**frozen["params"], **trainable["params"]}, trainable["delta"]


def restored_scorer(workdir: Path) -> tuple[Assembly, Scorer]:
    """The best checkpoint of a finished run, ready to score; a baseline is fitted again."""
    config: Any = run_folder.config_of(workdir)
    if config.baseline.name is not None:
        assembly = Assembly(config)
        run_folder.check_data(assembly, workdir)
        return assembly, assembly.baseline
    assembly, params, delta = restored(workdir)
    return assembly, assembly.scorer.of(params, delta)
