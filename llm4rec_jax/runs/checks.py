"""Checks of a configuration that need no data, so that a wrong name costs nobody the reading of it."""

from collections.abc import Callable
from typing import Any

from llm4rec_jax.models.heads import HEADS
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.rating_assembly import RatingAssembly
from llm4rec_jax.tasks.labeled import METRICS
from llm4rec_jax.tasks.ranking import check_batch_size, metric_names


def check_training(assembly: Assembly | RatingAssembly) -> None:
    """Checks the names of the method, the model and the metric of a run, and the size of its batches.

    Raises:
      ValueError: One of them is wrong; the message names its key.
    """
    config, train = assembly.config, assembly.train_config
    if config.baseline.name is not None:
        return
    if isinstance(assembly, RatingAssembly):
        metrics, named = METRICS, {"config.peft": lambda: assembly.method}
        if config.encoder.center or config.encoder.whiten is not None:
            raise ValueError("config.encoder.center and whiten are for runs that rank: a rating task centres by itself")
    else:
        metrics = metric_names()
        named: dict[str, Callable[[], Any]] = {
            "config.peft": lambda: assembly.bare_method,
            "config.model.users": lambda: assembly.users,
            "config.model.head": lambda: HEADS.lookup(config.model.head),
            "config.train": lambda: check_batch_size(train, assembly.mesh),
        }
    for key, look_up in named.items():
        try:
            look_up()
        except ValueError as error:
            raise ValueError(str(error) if "config." in str(error) else f"{key}: {error}") from error
    if train.metric not in metrics:
        raise ValueError(f"config.train.metric: {unknown_name('validation metric', train.metric, metrics)}")
