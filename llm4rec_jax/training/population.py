"""Several runs trained in one program: `vmap` over what they train, with the frozen parameters held once.

The loop is the one of a single run. Here are the three things it is given instead: a task whose parameters and batches
are those of all runs, a step that is mapped over them, and books that are kept for each.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llm4rec_jax import sharding
from llm4rec_jax.sharding import digest
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.log import TrainingLog
from llm4rec_jax.training.loop import run_loop, train
from llm4rec_jax.training.memory import FittingProgram
from llm4rec_jax.training.recorder import RunRecorder
from llm4rec_jax.training.step import TrainStep
from llm4rec_jax.training.task import CheckpointableIterator, NonFiniteLoss, Params, Task, TrainResult


def train_together(
    tasks: Sequence[Task],
    configs: Sequence[TrainConfig],
    workdirs: Sequence[Path],
    *,
    mesh: Mesh | None = None,
    rules: sharding.Rules = (),
) -> list[TrainResult | NonFiniteLoss]:
    """Trains runs that differ in little, in one program.

    Each run is what `train` makes of it, up to rounding: its own batches, randomness, optimizer, early stopping, and
    its own folder. A run whose loss is not finite ends there, and the others go on.

    Args:
      tasks: Tasks of the runs, with the same frozen parameters.
      configs: Options; they may differ in seed, learning rate and weight decay.
      workdirs: Folders of the runs, which all stand at the same step.
      mesh: Devices; all of them by default.
      rules: Sharding rules; for one run only.

    Returns:
      For each run its best state, or the error that ended it.

    Raises:
      Preempted: The process received SIGTERM or SIGINT, and all states have been saved.
      ValueError: The runs do not fit together, before anything is computed.
    """
    if len(tasks) == 1:
        try:
            return [train(tasks[0], configs[0], workdirs[0], mesh=mesh, rules=rules)]
        except NonFiniteLoss as error:
            return [error]
    if rules or jax.process_count() > 1:
        raise ValueError("several runs are trained together in one process and with whole parameters: train them apart")
    population = Population(tasks, configs, workdirs)
    recorders = [RunRecorder(*run, label=run[2].name) for run in zip(tasks, configs, workdirs, strict=True)]
    books = PopulationRecorder(recorders)

    make_step = functools.partial(PopulationStep, population, configs)
    return run_loop(population, configs[0], books, make_step=make_step, mesh=mesh)


class Population:
    """A task whose parameters are stacked along a first axis for the runs, and whose batches are lists."""

    def __init__(self, tasks: Sequence[Task], configs: Sequence[TrainConfig], workdirs: Sequence[Path]) -> None:
        self.tasks, self._configs, self._workdirs = tasks, configs, workdirs
        first = tasks[0]
        self.method, self.metrics, self.compute_dtype = first.method, first.metrics, first.compute_dtype
        self.text_shapes = first.text_shapes
        self.prepare, self.constant_shapes = first.prepare, first.constant_shapes

    @property
    def notes(self) -> Sequence[str]:
        return [f"{len(self.tasks)} runs in one program", *self.tasks[0].notes]

    def bind(self, mesh: Mesh) -> None:
        for task in self.tasks:
            task.bind(mesh)

    def init(self, key: jax.Array) -> Params:
        keys = [jax.random.fold_in(jax.random.key(config.seed), 1) for config in self._configs]
        params = [task.init(own_key) for task, own_key in zip(self.tasks, keys, strict=True)]
        frozen = params[0].frozen
        base = digest(frozen)
        for other, workdir in zip(params, self._workdirs, strict=True):
            same = all(a is b for a, b in zip(*map(jax.tree.leaves, (frozen, other.frozen)), strict=True))
            if not same and digest(other.frozen) != base:
                raise ValueError(
                    f"the runs {self._workdirs[0]} and {workdir} do not share what is frozen: train them apart"
                )
        return Params(stack([other.trainable for other in params]), frozen)

    def batches(self, seed: int) -> "Streams":
        return Streams([task.batches(config.seed) for task, config in zip(self.tasks, self._configs, strict=True)])

    def place(self, batch: Any) -> Any:
        return self.tasks[0].place_together(batch)


class PopulationStep(TrainStep):
    """A training step mapped over the runs."""

    def __init__(self, population: Population, configs: Sequence[TrainConfig], trainable: Any) -> None:
        self._axes = population.tasks[0].batch_axes
        one = select_run(trainable, 0)
        self._steps = [TrainStep(task, config, one) for task, config in zip(population.tasks, configs, strict=True)]

    @property
    def setting(self) -> dict[str, jax.Array]:
        return stack([step.setting for step in self._steps])

    def start(self, setting: Mapping[str, Any], trainable: Any) -> dict[str, Any]:
        return jax.vmap(self._steps[0].start)(setting, trainable)

    def step(
        self, frozen: Any, setting: Mapping[str, Any], state: dict[str, Any], batch: Any, item_micro_batch: int = 0
    ) -> tuple[Any, Any]:
        step = functools.partial(self._steps[0].step, item_micro_batch=item_micro_batch)
        return jax.vmap(step, in_axes=(None, 0, 0, self._axes))(frozen, setting, state, batch)


class Streams:
    """The streams of all runs as one, of lists of batches."""

    def __init__(self, streams: Sequence[CheckpointableIterator]) -> None:
        self._streams = streams

    def __next__(self) -> list[Any]:
        return [next(stream) for stream in self._streams]

    def get_state(self) -> list[Any]:
        return [stream.get_state() for stream in self._streams]

    def set_state(self, state: Sequence[Any]) -> None:
        for stream, position in zip(self._streams, state, strict=True):
            stream.set_state(position)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


class PopulationRecorder:
    """The books of several runs. A run that fails or stops early is left alone, while the others go on."""

    def __init__(self, recorders: Sequence[RunRecorder]) -> None:
        self._recorders = recorders
        self._failed: dict[int, NonFiniteLoss] = {}
        self._log: TrainingLog

    def _going(self) -> list[int]:
        return [k for k, recorder in enumerate(self._recorders) if k not in self._failed and recorder.active]

    @property
    def active(self) -> bool:
        return bool(self._going())

    @property
    def step(self) -> int | None:
        return self._recorders[0].step

    def open(self, base: str) -> None:
        for recorder in self._recorders:
            recorder.open(base)
        if len({recorder.step for recorder in self._recorders}) > 1:
            where = ", ".join(f"{recorder.workdir} at {recorder.step}" for recorder in self._recorders)
            raise ValueError(f"runs go on together only from the same step: {where}. Finish them apart")

    def restore(self, state: Any) -> tuple[Any, Any]:
        restored = [recorder.restore(select_run(state, k)) for k, recorder in enumerate(self._recorders)]
        if self.step is None:
            return state, None
        return stack([own for own, _ in restored]), [position for _, position in restored]

    @contextlib.contextmanager
    def logging(self, started: float) -> Iterator[TrainingLog]:
        with contextlib.ExitStack() as opened:
            logs = [opened.enter_context(recorder.logging(started)) for recorder in self._recorders]
            self._log = logs[0]
            yield logs[0]

    @contextlib.contextmanager
    def exclude_from_timing(self) -> Iterator[None]:
        with contextlib.ExitStack() as opened:
            for recorder in self._recorders:
                opened.enter_context(recorder.exclude_from_timing())
            yield

    def advance(self, step: int) -> None:
        for recorder in self._recorders:
            recorder.advance(step)

    def write_program(self, step: int, number: int, compiled: FittingProgram, flops: float) -> None:
        for recorder in self._recorders:
            recorder.write_program(step, number, compiled, flops)

    def add(self, step: int, batch: Any, flops: float, figures: Mapping[str, np.ndarray]) -> None:
        for k in self._going():
            with self._noting_failure(k):
                self._recorders[k].add(step, batch[k], flops, {name: values[k] for name, values in figures.items()})

    def write_training(self, step: int, peak: float, programs: int) -> None:
        for k in self._going():
            self._recorders[k].write_training(step, peak, programs)

    def checkpoint(self, step: int, state: Any, frozen: Any, position: Any, validate: bool) -> None:
        for k in self._going():
            with self._noting_failure(k):
                self._recorders[k].checkpoint(step, select_run(state, k), frozen, position[k], validate)

    @contextlib.contextmanager
    def _noting_failure(self, k: int) -> Iterator[None]:
        try:
            yield
        except NonFiniteLoss as error:
            self._failed[k] = error
            self._log.log(f"{self._recorders[k].workdir.name}: {error}")

    def flush(self) -> None:
        for recorder in self._recorders:
            recorder.flush()

    def finish(self, state: Any, frozen: Any) -> list[TrainResult | NonFiniteLoss]:
        return [
            self._failed[k] if k in self._failed else recorder.finish(select_run(state, k), frozen)
            for k, recorder in enumerate(self._recorders)
        ]

    def close(self) -> None:
        for recorder in self._recorders:
            recorder.close()


def stack(trees: Sequence[Any]) -> Any:
    """Stacks trees of several runs along a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def select_run(tree: Any, k: int) -> Any:
    """Returns the part of run k in a stacked tree."""
    return jax.tree.map(lambda a: a[k], tree)
