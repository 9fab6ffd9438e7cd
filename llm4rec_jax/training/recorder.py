"""The books of a run: checkpoints, records, the best state and early stopping."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from llm4rec_jax.evaluation.metrics import is_better
from llm4rec_jax.inference.ranks import NonFiniteScores
from llm4rec_jax.io import NotWritten
from llm4rec_jax.training.checkpoint import Checkpoints
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.log import TrainingLog
from llm4rec_jax.training.memory import FittingProgram
from llm4rec_jax.training.metric_writer import MetricWriter
from llm4rec_jax.training.task import NonFiniteLoss, Task, TrainResult
from llm4rec_jax.training.throughput import BatchStats


class Recorder(Protocol):
    """Host-side bookkeeping of the loop: of one run (`RunRecorder`) or of a population of runs.

    Attributes:
      step: Step of the checkpoint that the run goes on from; None where it starts.
      active: Whether there is anything left to train.
    """

    @property
    def step(self) -> int | None: ...

    @property
    def active(self) -> bool: ...

    def open(self, base: str) -> None: ...

    def restore(self, state: Any) -> tuple[Any, Any]: ...

    def logging(self, started: float) -> contextlib.AbstractContextManager[TrainingLog]: ...

    def exclude_from_timing(self) -> contextlib.AbstractContextManager[None]: ...

    def advance(self, step: int) -> None: ...

    def write_program(self, step: int, number: int, compiled: FittingProgram, flops: float) -> None: ...

    def add(self, step: int, batch: Any, flops: float, figures: Mapping[str, np.ndarray]) -> None: ...

    def write_training(self, step: int, peak: float, programs: int) -> None: ...

    def checkpoint(self, step: int, state: Any, frozen: Any, position: Any, validate: bool) -> None: ...

    def flush(self) -> None: ...

    def finish(self, state: Any, frozen: Any) -> Any: ...

    def close(self) -> None: ...


class RunRecorder:
    """The books of one run.

    Args:
      task: Task that validates.
      config: Options of the run.
      workdir: Folder of the run.
      label: Name of the run in lines on the console; empty where there is only one.
      writers: Makes further destinations of records, when the log is opened.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        workdir: Path,
        label: str = "",
        writers: Callable[[], Sequence[MetricWriter]] = tuple,
    ) -> None:
        self._task, self._config, self._writers = task, config, writers
        self.workdir, self._label = workdir, f"{label}: " if label else ""
        self._record: dict[str, Any] = {"best_value": None, "best_step": None, "worse": 0, "stopped": False}
        self._window: list[dict[str, float]] = []
        self._stats: list[BatchStats] = []
        self._log: TrainingLog
        self._checkpoints: Checkpoints

    @property
    def step(self) -> int | None:
        """Step of the checkpoint that the run goes on from; None where it starts."""
        return self._step

    @property
    def active(self) -> bool:
        """Whether the run has not stopped early."""
        return not self._record["stopped"]

    def open(self, base: str) -> None:
        """Opens the run's checkpoints over a frozen base with this digest."""
        self._checkpoints = Checkpoints(self.workdir, base)
        self._step = self._checkpoints.latest("last")

    def restore(self, state: Any) -> tuple[Any, Any]:
        """Returns the saved state and the saved position of the input; `state` and None where the run starts."""
        if self._step is None:
            return state, None
        restored = self._checkpoints.restore("last", state)
        self._record = dict(restored.record)
        position = self._record.pop("input")
        self._window = self._record.pop("window", [])
        return restored.state, position

    @contextlib.contextmanager
    def logging(self, started: float) -> Iterator[TrainingLog]:
        """Opens the log, whose seconds count from `started`, and closes it."""
        self._log = TrainingLog(
            self.workdir,
            -1 if self._step is None else self._step,
            self._config.steps,
            self._task.batch_size,
            started,
            write=jax.process_index() == 0,
            records=self._record.pop("records", 0),
            writers=self._writers(),
        )
        with self._log as log:
            yield log

    def exclude_from_timing(self) -> contextlib.AbstractContextManager[None]:
        """Leaves the time of a block out of the rates."""
        return self._log.exclude_from_timing()

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        self._log.advance(step)

    def write_program(self, step: int, number: int, compiled: FittingProgram, flops: float) -> None:
        """Records what a new program costs."""
        self._log.write_program(step, number, compiled, flops)

    def add(self, step: int, batch: Any, flops: float, figures: Mapping[str, np.ndarray]) -> None:
        """Takes the figures of a step.

        Raises:
          NonFiniteLoss: One of them is not finite.
        """
        values = {name: float(value) for name, value in figures.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                good = self._checkpoints.latest("last")
                raise NonFiniteLoss(
                    f"the {name.replace('_', ' ')} is {value} at step {step}, in a batch of "
                    f"{self._task.describe_batch(batch)}; the last good checkpoint is "
                    f"{'none' if good is None else self._checkpoints.folder / 'last' / str(good)}. Lower the learning "
                    "rate, lengthen the warm-up, or look at the data of this batch"
                )
        self._window.append(values)
        self._stats.append(self._task.batch_stats(batch)._replace(flops=flops))

    def write_training(self, step: int, peak: float, programs: int) -> None:
        """Records the means of the steps since the last training record."""
        means = {name: float(np.mean([values[name] for values in self._window])) for name in self._window[0]}
        self._log.write_training(step, means, self._stats, peak, programs)
        self._window, self._stats = [], []

    def checkpoint(self, step: int, state: Any, frozen: Any, position: Any, validate: bool) -> None:
        """Saves a state to go on from, after a validation where it is due."""
        if validate:
            self._validate(step, state.get("average", state["trainable"]), frozen)
        books = {**self._record, "input": position, "records": self._log.records}
        self._checkpoints.save("last", step, state, {**books, "window": self._window} if self._window else books)

    def _validate(self, step: int, trainable: Any, frozen: Any) -> None:
        try:
            summary = self._task.evaluate(trainable, frozen)
        except NonFiniteScores as error:
            raise NonFiniteLoss(f"validation at step {step}: {error}") from error
        self._log.write("validation", step, summary)
        record, metric = self._record, self._config.metric
        if step and summary.get("users_constant"):
            self._log.log(f"warning: {self._label}all items have one score for {summary['users_constant']:.0f} users")
        better = record["best_value"] is None or is_better(metric, summary[metric], record["best_value"])
        self._log.log(
            f"{self._label}step {step}: validation {metric} {summary[metric]:.4f}{' (best so far)' if better else ''}"
        )
        if better:
            record.update(best_value=summary[metric], best_step=step, worse=0)
            self._checkpoints.save("best", step, trainable, {"step": step, metric: summary[metric]})
            return
        record["worse"] += 1
        record["stopped"] = self._config.patience is not None and record["worse"] >= self._config.patience
        if record["stopped"]:
            self._log.log(f"{self._label}stopped early: {record['worse']} validations without a better {metric}")

    def flush(self) -> None:
        """Returns when the last checkpoint is written."""
        self._checkpoints.finish()

    def finish(self, state: Any, frozen: Any) -> TrainResult:
        """Returns the best state."""
        record = self._record
        best = self._checkpoints.restore("best", state["trainable"], record["best_step"]).state
        step = self._checkpoints.latest("last")
        return TrainResult(best, frozen, record["best_step"], record["best_value"], step or 0)

    def close(self) -> None:
        """Waits for the checkpoint that is being written, and ends its threads."""
        self._checkpoints.close()


@contextlib.contextmanager
def closing(recorder: Recorder) -> Iterator[None]:
    """Closes a recorder; a failure to write does not replace an error that is under way, but is added to it."""
    try:
        yield
    except BaseException as error:
        try:
            recorder.close()
        except NotWritten as unwritten:
            error.add_note(str(unwritten))
        raise
    recorder.close()
