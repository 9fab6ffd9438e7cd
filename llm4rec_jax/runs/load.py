"""A trained run, opened again."""

from pathlib import Path
from typing import Any

import jax

from llm4rec_jax import sharding
from llm4rec_jax.inference.scorer import Scorer
from llm4rec_jax.runs import folder
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.rating_assembly import RatingAssembly
from llm4rec_jax.runs.run import assemble
from llm4rec_jax.training.checkpoint import Checkpoints
from llm4rec_jax.training.task import Params, partition_params


def restore(workdir: Path) -> tuple[Assembly | RatingAssembly, Params]:
    """Restores the best checkpoint of a run.

    Args:
      workdir: Folder of the run.

    Returns:
      The run's assembly, and its trained and frozen parameters.

    Raises:
      RunFolderError: There is no run, or its data has changed.
      CheckpointError: There is no checkpoint, or it is damaged.
    """
    config: Any = folder.config_of(workdir)
    # It was trained on some devices, and is looked at on any.
    config.mesh.model = 1
    assembly = assemble(config)
    folder.check_data(assembly, workdir)
    params = partition_params(assembly.method, assembly.params(), jax.random.key(0))
    checkpoints = Checkpoints(workdir, sharding.digest(params.frozen))
    # Once there is a result, it is of that state, whatever became of `last` since.
    ended = workdir / "result.json"
    best = (folder.read(ended) if ended.exists() else checkpoints.record("last"))["best_step"]
    trainable = checkpoints.restore("best", sharding.place(params.trainable, assembly.mesh), best).state
    checkpoints.close()
    return assembly, Params(trainable, params.frozen)


def restore_scorer(workdir: Path) -> tuple[Assembly, Scorer]:
    """Restores the best checkpoint of a ranking run, ready to score; a baseline is fitted again."""
    config: Any = folder.config_of(workdir)
    if config.baseline.name is not None:
        assembly = Assembly(config)
        folder.check_data(assembly, workdir)
        return assembly, assembly.baseline
    assembly, params = restore(workdir)
    if not isinstance(assembly, Assembly):
        raise ValueError(f"{workdir} rates labeled examples and ranks no catalogue")
    return assembly, assembly.scorer.of({**params.frozen, **params.trainable["params"]}, params.trainable["delta"])


def evaluate_again(workdir: Path) -> dict[str, dict[str, float]]:
    """Evaluates a run again, and writes its tables of users anew.

    Returns:
      {"validation": {metric: value}, "test": …}.
    """
    config: Any = folder.config_of(workdir)
    if config.baseline.name is not None:
        assembly = assemble(config)
        folder.check_data(assembly, workdir)
        return assembly.evaluate_baseline(workdir)
    assembly, params = restore(workdir)
    return assembly.evaluate(params.trainable, {"params": params.frozen}, workdir)
