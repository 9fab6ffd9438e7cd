"""Trains one model and evaluates it.

    python -m experiments.train --config=configs/movielens_100k.py:lora --workdir=runs/lora
    python -m experiments.train --config=configs/movielens_100k.py:id --workdir=runs/id --config.train.steps=600

The last line of standard output is one JSON object with validation and test metrics; the same is in
WORKDIR/result.json. Started again with the same arguments, a run goes on where it was, or prints its result again. On
SIGTERM it saves, prints {"preempted_at_step": STEP} (null before training and after it) and exits with 0.
"""

import signal
import time
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags
from ml_collections import config_flags

from experiments.cli import command
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs import rating_runs as pointwise_runs
from llm4rec_jax.runs import results
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.sharding import broadcast_from_first
from llm4rec_jax.training import loop as train
from llm4rec_jax.training.runs import Preempted, Trained

_PROFILE = flags.DEFINE_bool("profile", False, "Traces five steps, in WORKDIR/profile, for TensorBoard or Perfetto.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py or FILE.py:arg; --config.KEY=VALUE changes a value.")


def run(config: Any, workdir: Path, say: Any = lambda text: None, profile: Path | None = None) -> dict[str, Any]:
    """Trains and evaluates, or returns the result of the run that has ended here.

    Returns:
      What is in result.json.

    Raises:
      FolderInUse, RunFolderError: another process works in the folder; it is of another run, or damaged.
    """
    with run_folder.locked(workdir):
        run_folder.open_for(config, workdir)
        if broadcast_from_first((workdir / "result.json").exists()):
            return run_folder.read(workdir / "result.json")
        return _run(config, workdir, say, profile)


def _run(config: Any, workdir: Path, say: Any, profile: Path | None) -> dict[str, Any]:
    on_questions = pointwise_runs.takes(config)
    if profile is not None and (on_questions or config.baseline.name is not None):
        what = "questions are trained by another loop" if on_questions else "a baseline in closed form has no steps"
        raise ValueError(f"--profile traces training steps, but {what}: leave it out")
    if on_questions:
        return pointwise_runs.run(config, workdir, say)
    assembly = Assembly(config)
    if config.baseline.name is not None:
        return _baseline(assembly, workdir, say)
    params = assembly.params()
    say(run_folder.summary(assembly))
    run_folder.describe(assembly, workdir)
    seed, rate, decay = config.seed, config.train.learning_rate, config.train.weight_decay
    trained = train.train(
        assembly.model,
        assembly.method,
        params,
        assembly.split,
        workdir,
        seed=seed,
        learning_rate=rate,
        weight_decay=decay,
        profile=profile,
        **options(assembly),
    )
    return finish(assembly, trained, workdir)


def options(assembly: Assembly) -> dict[str, Any]:
    """What `train_together` takes beside its runs."""
    config = assembly.config
    own = ("scales", "clip", "learning_rate", "weight_decay")
    return {
        "loss": config.loss.name,
        "tokens": assembly.tokens,
        "prompts": assembly.prompts,
        "num_negatives": config.loss.num_negatives,
        "alpha": config.loss.alpha,
        "label_threshold": config.loss.label_threshold,
        "scales": assembly.scales,
        "mesh": assembly.mesh,
        "rules": assembly.rules,
        "clip": config.train.clip or None,
        **{name: config.train[name] for name in config.train if name not in own},
    }


def finish(assembly: Assembly, trained: Trained, workdir: Path, together: int = 1) -> dict[str, Any]:
    """Evaluates the best state of a run and writes result.json, which it returns.

    Args:
      assembly, trained, workdir: of the run.
      together: how many runs were trained in its program; its costs are its share of theirs.
    """
    weights = {**trained.frozen["params"], **trained.trainable["params"]}
    scorer = trained.scorer.of(weights, trained.trainable["delta"], trained.frozen["text"], trained.frozen["states"])
    result = {
        **results.evaluate_run(assembly, scorer, workdir),
        **results.trained(trained.best_step, trained.step, trained.trainable, trained.frozen["params"]),
        **results.costs(workdir, assembly.config.train.batch_size, together),
    }
    run_folder.write(workdir / "result.json", result)
    return result


def _baseline(assembly: Assembly, workdir: Path, say: Any) -> dict[str, Any]:
    """Fits and evaluates a baseline that has no steps."""
    started = time.perf_counter()
    say(run_folder.summary(assembly))
    run_folder.describe(assembly, workdir)
    result = {
        **results.evaluate_run(assembly, assembly.baseline, workdir),
        **results.untrained(time.perf_counter() - started),
    }
    run_folder.write(workdir / "result.json", result)
    return result


def main() -> None:
    workdir = command.workdir()
    # While the loop trains it has its own; before and after there is nothing to save.
    signal.signal(signal.SIGTERM, _preempted)
    try:
        say = print if jax.process_index() == 0 else lambda text: None
        command.answer(run(_CONFIG.value, workdir, say, workdir / "profile" if _PROFILE.value else None))
    except Preempted as ended:
        command.answer({"preempted_at_step": ended.step})
        raise


def _preempted(*_: object) -> NoReturn:
    raise Preempted(None)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    command.run(main, several=True)
