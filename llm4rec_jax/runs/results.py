"""Numbers of a finished run: metrics of validation and test, every user's, and what the run cost."""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
from jax.sharding import Mesh

from llm4rec_jax.data.labeled import LabeledData
from llm4rec_jax.data.splits.split import Phase, Split
from llm4rec_jax.evaluation import evaluate, rating_metrics
from llm4rec_jax.inference.generative import Ranker
from llm4rec_jax.inference.scorer import Scorer
from llm4rec_jax.peft import count
from llm4rec_jax.runs import folder
from llm4rec_jax.runs.schema import EvaluationConfig
from llm4rec_jax.training import metric_writer
from llm4rec_jax.training.task import TrainResult

PHASES: tuple[Phase, ...] = ("validation", "test")


def evaluate_ranking(
    scorer: Scorer | Ranker,
    split: Split,
    mesh: Mesh,
    workdir: Path,
    options: EvaluationConfig,
    *,
    baseline: bool = False,
) -> dict[str, dict[str, float]]:
    """Evaluates a recommender on validation and test.

    Args:
      scorer: Recommender or baseline.
      split: Data.
      mesh: Devices.
      workdir: Folder that gets `per_user_*.parquet`.
      options: How repeats and candidates are treated.
      baseline: Whether it is a baseline, which may have nothing to tell items apart by.

    Returns:
      {"validation": {metric: value}, "test": …}.

    Raises:
      ValueError: A trained model gives all items one score, whoever the user is.
    """
    metrics, tables = {}, {}
    for phase in PHASES:
        result = evaluate.evaluate(
            scorer,
            split,
            phase,
            mesh=mesh,
            beyond_accuracy=True,
            **dataclasses.asdict(options),
        )
        _check_constant(result.summary, phase, baseline)
        tables[f"per_user_{phase}.parquet"] = result.per_user
        metrics[phase] = {name: float(value) for name, value in result.summary.items()}
    _write_tables(metrics, tables, workdir)
    return metrics


def evaluate_rating(
    scores: Callable[[str], np.ndarray], data: LabeledData, workdir: Path
) -> dict[str, dict[str, float]]:
    """Evaluates scores of labeled examples on validation and test, and writes `per_row_*.parquet`.

    Args:
      scores: Logits [n] of a part, by its name.
      data: Labeled examples.
      workdir: Folder that gets the tables.
    """
    metrics, tables = {}, {}
    for phase in PHASES:
        evaluation = rating_metrics.evaluate(scores(phase), data, data.parts()[phase])
        tables[f"per_row_{phase}.parquet"] = evaluation.per_row
        metrics[phase] = evaluation.summary
    _write_tables(metrics, tables, workdir)
    return metrics


def _write_tables(
    metrics: Mapping[str, Mapping[str, float]], tables: Mapping[str, pl.DataFrame], workdir: Path
) -> None:
    """Writes the tables of users, once the metrics have been compared with those of a run that has ended.

    Raises:
      RunFolderError: They differ. Ranks may differ a little from one kind of device to another.
    """
    file = workdir / "result.json"
    result = folder.read(file) if file.exists() else {}
    for phase, values in metrics.items():
        for name, value in values.items():
            known = result.get(phase, {}).get(name, value)
            if not math.isclose(value, known, rel_tol=0.01, abs_tol=0.005):
                raise folder.RunFolderError(
                    f"{file} has {phase} {name} = {known:.6g}, and evaluated again it is {value:.6g}: the checkpoint, "
                    "the encoder, the tokenizer or the data is not the run's any more. No file was replaced; put back "
                    "what was changed"
                )
    for name, table in tables.items():
        folder.write_table(workdir / name, table)


def _check_constant(summary: Mapping[str, float], phase: str, baseline: bool) -> None:
    """Warns where a user's candidates all have one score, and refuses a trained model that has collapsed."""
    constant, users = summary["users_constant"], summary["users"]
    if not constant:
        return
    what = f"{phase}: all candidates have one score for {constant:.0f} of {users:.0f} users"
    if not baseline and constant == users:
        raise ValueError(
            f"{what}: the model has collapsed, and its figures say nothing. Lower the learning rate, or look at what "
            "it reads"
        )
    if jax.process_index() == 0:
        print(f"warning: {what}: every target of theirs ranks last", file=sys.stderr)


def costs_of_baseline(seconds: float) -> dict[str, Any]:
    """Returns the costs of a baseline, which has no steps, for result.json."""
    return {
        "best_step": 0,
        "steps": 0,
        "parameters": {"trainable": 0, "delta": 0, "frozen": 0},
        "seconds": seconds,
        "step": {"seconds": 0.0, "flops": 0.0, "bytes": 0, "programs": 0},
    }


def costs_of_training(result: TrainResult, workdir: Path, batch_size: int, together: int = 1) -> dict[str, Any]:
    """Returns the parameters and costs of a trained run, for result.json.

    The costs are seconds in all, and those of a step: its median time, and FLOPs and bytes of its costliest program.
    The number of records is there too, by which a loss of records is noticed. They are missing where a damaged
    metrics.jsonl was removed after the last step.

    Args:
      result: Outcome of training.
      workdir: Folder of the run.
      batch_size: Examples a step.
      together: Number of runs that were trained in its programs; the costs are its share.
    """
    records = metric_writer.read(workdir / "metrics.jsonl")
    programs = [record for record in records if record["kind"] == "program"]
    rates = [record["examples_per_second"] for record in records if record["kind"] == "train"]
    return {
        "best_step": result.best_step,
        "steps": result.step,
        "parameters": {
            "trainable": count(result.trainable),
            "delta": count(result.trainable["delta"]),
            "frozen": count(result.frozen["params"]),
        },
        "records": len(records),
        "together": together,
        "seconds": records[-1]["seconds"] / together if records else 0.0,
        "step": _costs_of_a_step(programs, rates, batch_size, together) if programs and rates else None,
    }


def _costs_of_a_step(
    programs: Sequence[Mapping[str, Any]], rates: Sequence[float], batch_size: int, together: int
) -> dict[str, Any]:
    costs = {
        "seconds": batch_size / float(np.median(rates)) / together,
        "bytes": max(record["bytes"] for record in programs) / together,
        "programs": max(record["number"] for record in programs),
    }
    # XLA does not count what a loop repeats.
    if flops := [record["flops"] for record in programs if "flops" in record]:
        costs["flops"] = max(flops) / together
    return costs
