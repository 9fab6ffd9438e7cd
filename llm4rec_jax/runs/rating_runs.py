"""Runs on a pointwise source: the folder, the commands and the tables of any other run, without a split.

A configuration whose `data.source` is in `LABELED_SOURCES` comes here. Of it are read: seed, baseline, data.source, path,
published, options and few_shot, text, encoder, peft, model.users and user_options, loss.name, and train, except its
history and dropout. Input workers, parts of a batch and layouts over devices, which it has no use for, are refused.
The keys that configs/tallrec_movie.py adds are described there.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm4rec_jax.data.interactions import format_statistics
from llm4rec_jax.data.labeled import LABELED_SOURCES
from llm4rec_jax.evaluation import rating_metrics as pointwise
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs import plugins, results
from llm4rec_jax.runs.assemble import factors
from llm4rec_jax.runs.rating_assembly import PointwiseAssembly
from llm4rec_jax.tasks import rating_scoring as answering
from llm4rec_jax.tasks import rating_training as pointwise_train
from llm4rec_jax.training.checkpoint import Checkpoints, digest
from llm4rec_jax.training.runs import separate


def takes(config: Any) -> bool:
    """Whether a configuration is of a run on a pointwise source."""
    plugins.load(config)
    return config.data.source in LABELED_SOURCES


def run(config: Any, workdir: Path, say: Any) -> dict[str, Any]:
    """Fits or trains, and evaluates: what `experiments.train` does of a configuration that `takes`.

    The folder is `workdir`, opened. Returns what is in result.json.
    """
    started = time.perf_counter()
    if jax.process_count() > 1:
        raise ValueError(f"{workdir}: runs that answer questions are small, and run in one process")
    assembly = PointwiseAssembly(config)
    data = assembly.whole
    say(f"{data.name}, fingerprint {data.fingerprint[:12]}\n{format_statistics(data.statistics())}\n{data.protocol}")
    if (workdir / "dataset.json").exists() and (workdir / "checkpoints").exists():
        check_data(assembly, workdir)
    run_folder.write(workdir / "environment.json", run_folder.environment())
    run_folder.write(workdir / "dataset.json", _description(assembly))
    if config.baseline.name is not None:
        result = {
            **_evaluate(assembly, _fitted(assembly), workdir),
            **results.untrained(time.perf_counter() - started),
        }
    else:
        result = _train(assembly, workdir, started)
    run_folder.write(workdir / "result.json", result)
    return result


def evaluate_again(workdir: Path) -> dict[str, dict[str, float]]:
    """What `experiments.evaluate` does: a baseline is fitted again, the best state of a trained run is restored."""
    assembly = PointwiseAssembly(run_folder.config_of(workdir))
    check_data(assembly, workdir)
    if assembly.config.baseline.name is not None:
        return _evaluate(assembly, _fitted(assembly), workdir)
    trainable, frozen = separate(assembly.method, assembly.params, jax.random.key(0))
    checkpoints = Checkpoints(workdir, digest(frozen["params"]))
    trainable = checkpoints.restore("best", trainable).state
    checkpoints.close()
    return _evaluate(assembly, _scorer(assembly, trainable, frozen["params"]), workdir)


def check_data(assembly: PointwiseAssembly, workdir: Path) -> None:
    """RunFolderError when the data at hand is not what the run was trained on."""
    held, now = run_folder.read(workdir / "dataset.json"), _description(assembly)
    for name in ("fingerprint", "protocol", "few_shot"):
        if held.get(name) != now[name]:
            raise run_folder.RunFolderError(
                f"data changed since {workdir} was trained: its {name} was {held.get(name)!r}, now it is {now[name]!r}"
                ". Bring the old data back, or train in another --workdir"
            )


def _description(assembly: PointwiseAssembly) -> dict[str, Any]:
    """What dataset.json says. Fingerprint and protocol are of the data before the draw: the questions tested are the
    same however many are trained on, and such runs share a table."""
    whole, k = assembly.whole, assembly.config.data.few_shot
    drawn = {"questions": k, "seed": assembly.config.seed, "fingerprint": assembly.data.fingerprint}
    return {
        "name": whole.name,
        "fingerprint": whole.fingerprint,
        "protocol": whole.protocol,
        "statistics": whole.statistics(),
        "few_shot": None if k is None else drawn,
    }


def _train(assembly: PointwiseAssembly, workdir: Path, started: float) -> dict[str, Any]:
    """Trains and evaluates; what is in result.json. Its seconds count from `started`, of `time.perf_counter()`."""
    config = assembly.config
    own = {
        name: config.train[name]
        for name in config.train
        if name not in ("history", "input_workers", "micro_batches", "dropout", "clip", "scales")
    }
    # A frozen encoder reads here, unless the cache has its vectors.
    reader = assembly.reader
    prepared = time.perf_counter() - started
    trained = pointwise_train.train(
        assembly.head,
        reader,
        assembly.params,
        assembly.data,
        assembly.prompts,
        workdir,
        seed=config.seed,
        clip=config.train.clip or None,
        scales=factors(config.train.scales),
        **own,
    )
    checkpoints = Checkpoints(workdir, digest(trained.frozen))
    checkpoints.save("best", trained.best_step, trained.trainable, {"step": trained.best_step})
    checkpoints.close()
    found = {
        **_evaluate(assembly, _scorer(assembly, trained.trainable, trained.frozen), workdir),
        **results.trained(trained.best_step, trained.step, trained.trainable, trained.frozen),
        **results.costs(workdir, min(config.train.batch_size, assembly.data.train.size)),
    }
    return {**found, "seconds": prepared + found["seconds"]}


def _fitted(assembly: PointwiseAssembly) -> Callable[[str], np.ndarray]:
    """Scores of a part by the baseline."""
    return lambda part: assembly.predictor(assembly.data.parts()[part])


def _scorer(assembly: PointwiseAssembly, trainable: Any, frozen: Any) -> Callable[[str], np.ndarray]:
    """Scores of a part by a trained model."""
    score = answering.scorer(assembly.head, assembly.reader)
    return lambda part: score(trainable, frozen, assembly.data.parts()[part], assembly.prompts[part])


def _evaluate(
    assembly: PointwiseAssembly, scores: Callable[[str], np.ndarray], workdir: Path
) -> dict[str, dict[str, float]]:
    """Evaluates on validation and test, and writes `per_row_*.parquet`: {"validation": {metric: value}, "test": …}."""
    found, data = {}, assembly.data
    for part in ("validation", "test"):
        evaluation = pointwise.evaluate(scores(part), data, data.parts()[part])
        run_folder.write_table(workdir / f"per_row_{part}.parquet", evaluation.per_row)
        found[part] = evaluation.summary
    return found
