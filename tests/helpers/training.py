"""Training of a recommender from loose parts, for tests."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llm4rec_jax.data.splits.split import Split
from llm4rec_jax.models.recommender import Recommender
from llm4rec_jax.peft import Peft
from llm4rec_jax.tasks.ranking import LossConfig, RankingTask
from llm4rec_jax.training import loop, population
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.task import NonFiniteLoss

TRAIN_KEYS = {field.name for field in dataclasses.fields(TrainConfig)}
LOSS_KEYS = {"num_negatives", "alpha", "label_threshold", "temperature", "calibration"}
TASK_KEYS = {"tokens", "prompts", "ks", "state_cache_bytes"}


def task_of(
    model: Recommender, method: Peft, params: Mapping[str, Any], split: Split, **options: Any
) -> tuple[RankingTask, TrainConfig]:
    """A ranking task and its options, from options of all kinds."""
    loss = {name: options.pop(name) for name in LOSS_KEYS & options.keys()}
    if "loss" in options:
        loss["name"] = options.pop("loss")
    task = {name: options.pop(name) for name in TASK_KEYS & options.keys()}
    config = TrainConfig(**options)
    return RankingTask(model, method, params, split, config, loss=LossConfig(**loss), **task), config


def train(model: Recommender, method: Peft, params: Any, split: Split, workdir: Path, **options: Any) -> Any:
    """The result of a run, with its scorer."""
    where = {name: options.pop(name) for name in ("mesh", "rules", "profile") if name in options}
    task, config = task_of(model, method, params, split, **options)
    result = loop.train(task, config, workdir, **where)
    return SimpleNamespace(**result._asdict(), scorer=task.scorer)


@dataclasses.dataclass
class Run:
    """A run of those that are trained together."""

    params: Any
    split: Split
    workdir: Path
    seed: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


def train_together(
    model: Recommender, method: Peft, runs: list[Run], *, mesh: Any = None, rules: Any = (), **options: Any
) -> list[Any]:
    """The outcomes of runs that are trained together."""
    made = [
        task_of(
            model,
            method,
            run.params,
            run.split,
            **options,
            seed=run.seed,
            learning_rate=run.learning_rate,
            weight_decay=run.weight_decay,
        )
        for run in runs
    ]
    tasks, configs = zip(*made, strict=True)
    outcomes = population.train_together(tasks, configs, [run.workdir for run in runs], mesh=mesh, rules=rules)
    return [
        outcome if isinstance(outcome, NonFiniteLoss) else SimpleNamespace(**outcome._asdict()) for outcome in outcomes
    ]
