"""One run from its configuration to its result: what the train command does, as a function."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from llm4rec_jax.data import sources
from llm4rec_jax.runs import folder, plugins
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.checks import check_training
from llm4rec_jax.runs.generation_assembly import GenerationAssembly
from llm4rec_jax.runs.prompt_assembly import PromptAssembly
from llm4rec_jax.runs.rating_assembly import RatingAssembly
from llm4rec_jax.runs.results import costs_of_baseline, costs_of_training
from llm4rec_jax.runs.schema import resolve
from llm4rec_jax.runs.title_assembly import TitleAssembly
from llm4rec_jax.sharding import broadcast_from_first
from llm4rec_jax.training.loop import train
from llm4rec_jax.training.metric_writer import WandbWriter
from llm4rec_jax.training.task import TrainResult


def assemble(config: Any) -> Assembly | RatingAssembly:
    """Returns the assembly of a configuration, by its task; a `GenerationAssembly` where there are semantic ids.

    Raises:
      ValueError: A key or a value is wrong; the message names it.
    """
    config = resolve(config)
    plugins.load(plugins.names(config))
    labeled = config.data.source in sources.LABELED_SOURCES
    task = config.task or ("rating" if labeled else "ranking")
    if labeled == (task in ("ranking", "title_likelihood")):
        raise ValueError(
            f"config.task is {task!r}, and the source {config.data.source!r} has "
            f"{'labeled examples' if labeled else 'interactions to rank'}: give another source, or no task"
        )
    if config.prompt.vectors_from is not None and task != "prompt_scoring":
        raise ValueError(
            f"config.prompt.vectors_from is {config.prompt.vectors_from!r}, but the prompts of task {task!r} have no "
            "vectors: give config.task=prompt_scoring, or leave it out"
        )
    if task == "ranking" and config.generation.ids is not None and config.baseline.name is None:
        return GenerationAssembly(config)
    # A baseline is what a model of any task is compared with.
    return _ASSEMBLIES["ranking" if task == "title_likelihood" and config.baseline.name else task](config)


_ASSEMBLIES = {
    "ranking": Assembly,
    "title_likelihood": TitleAssembly,
    "rating": RatingAssembly,
    "prompt_scoring": PromptAssembly,
}


def run(
    config: Any, workdir: Path, log: Callable[[str], None] = lambda text: None, profile: Path | None = None
) -> dict[str, Any]:
    """Trains and evaluates, or returns the result of the run that has ended here.

    Args:
      config: A study's configuration.
      workdir: Folder of the run; a run that was broken off goes on.
      log: Prints a text for people.
      profile: Folder that gets a trace of five steps.

    Returns:
      The contents of result.json.

    Raises:
      FolderInUse: Another process works in the folder.
      RunFolderError: The folder is of another run, or damaged.
    """
    config = resolve(config)
    with folder.locked(workdir):
        folder.open_for(config, workdir)
        if broadcast_from_first((workdir / "result.json").exists()):
            return folder.read(workdir / "result.json")
        assembly = assemble(config)
        check_training(assembly)
        if config.baseline.name is not None:
            if profile is not None:
                raise ValueError("--profile traces training steps, but a baseline has none: leave it out")
            return _run_baseline(assembly, workdir, log)
        started = time.perf_counter()
        task = assembly.task
        log(assembly.summary())
        folder.describe(assembly, workdir)
        give_notices(assembly, log)
        # A frozen encoder may have read texts by now, which counts.
        prepared = time.perf_counter() - started if isinstance(assembly, RatingAssembly) else 0.0
        trained = train(
            task,
            assembly.train_config,
            workdir,
            mesh=assembly.mesh,
            rules=assembly.rules,
            profile=profile,
            writers=lambda: metric_writers(config, workdir),
        )
        return finish(assembly, trained, workdir, seconds=prepared)


def give_notices(assembly: Assembly | RatingAssembly, log: Callable[[str], None]) -> None:
    """Prints what is unusual about the data, one line each.

    Raises:
      ValueError: There is a notice, and `config.strict` makes notices errors.
    """
    lines = [f"notice: {notice.message} ({notice.key})" for notice in assembly.notices]
    if lines and assembly.config.strict:
        raise ValueError("config.strict makes notices errors:\n" + "\n".join(lines))
    for line in lines:
        log(line)


def metric_writers(config: Any, workdir: Path) -> Sequence[WandbWriter]:
    """Returns the writers that `config.log` asks for."""
    if config.log.wandb is None or jax.process_index():
        return ()
    return (WandbWriter(config.log.wandb, workdir, config.to_dict()),)


def finish(
    assembly: Assembly | RatingAssembly, trained: TrainResult, workdir: Path, *, together: int = 1, seconds: float = 0.0
) -> dict[str, Any]:
    """Evaluates the best state of a run and writes result.json, which it returns.

    Args:
      assembly: Assembly of the run.
      trained: Outcome of its training.
      workdir: Its folder.
      together: Number of runs that were trained in its program; its costs are its share of theirs.
      seconds: Time that was spent before training and belongs to the run's.
    """
    result = {
        **assembly.evaluate(trained.trainable, trained.frozen, workdir),
        **costs_of_training(trained, workdir, assembly.task.batch_size, together),
        "notices": [notice._asdict() for notice in assembly.notices],
    }
    result["seconds"] += seconds
    folder.write(workdir / "result.json", result)
    for writer in metric_writers(assembly.config, workdir):
        writer.write_result(result)
        writer.close()
    return result


def _run_baseline(assembly: Assembly | RatingAssembly, workdir: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """Fits and evaluates a baseline that has no steps."""
    started = time.perf_counter()
    log(assembly.summary())
    folder.describe(assembly, workdir)
    give_notices(assembly, log)
    result = {
        **assembly.evaluate_baseline(workdir),
        **costs_of_baseline(time.perf_counter() - started),
        "notices": [notice._asdict() for notice in assembly.notices],
    }
    folder.write(workdir / "result.json", result)
    return result
