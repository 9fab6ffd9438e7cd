"""From a trained state to the run's numbers: validation and test metrics, and every user's."""

from pathlib import Path
from typing import Any

import jax

from experiments import run_folder
from experiments.assemble import Assembly
from llm4rec_jax import evaluate, sharding
from llm4rec_jax.checkpoint import Checkpoints, digest
from llm4rec_jax.scoring import Scorer
from llm4rec_jax.train import separate


def evaluate_run(assembly: Assembly, scorer: Scorer, workdir: Path) -> dict[str, dict[str, float]]:
    """Evaluates on validation and test, and writes `per_user_*.parquet`.

    Returns:
      {"validation": {metric: value}, "test": …}.
    """
    found = {}
    for phase in ("validation", "test"):
        result = evaluate.evaluate(scorer, assembly.split, phase, mesh=assembly.mesh, beyond_accuracy=True)
        if jax.process_index() == 0:
            result.per_user.write_parquet(workdir / f"per_user_{phase}.parquet")
        found[phase] = {name: float(value) for name, value in result.summary.items()}
    return found


def restored(workdir: Path) -> tuple[Assembly, dict[str, Any], Any]:
    """The best checkpoint of a finished run: (assembly, parameters, delta)."""
    assembly = Assembly(run_folder.config_of(workdir))
    run_folder.check_data(assembly, workdir)
    trainable, frozen = separate(assembly.method, assembly.params(), jax.random.key(0))
    checkpoints = Checkpoints(workdir, digest(frozen["params"]))
    best = checkpoints.record("last")["best_step"]
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
