"""The log of one run: its records, its lines on the console and its progress bar."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import rich.console
import rich.progress

from llm4rec_jax import progress
from llm4rec_jax.training import throughput
from llm4rec_jax.training.memory import FittingProgram, program_bytes
from llm4rec_jax.training.metric_writer import JsonLinesWriter, MetricWriter, TensorBoardWriter


class TrainingLog:
    """Writes records and shows progress. Only the first process writes.

    Args:
      workdir: Folder of the run.
      step: Step of the checkpoint that the run goes on from, -1 at the start; later records are dropped.
      steps: Last step of the run.
      batch_size: Examples a step.
      started: `time.perf_counter()` when the work began; seconds count from there.
      write: False makes every method do nothing.
      records: Number of records when that checkpoint was made.
      writers: Further destinations.

    Raises:
      Damaged: The file of records is damaged, or some of them are lost.
      NotWritten: The disk is full, read-only or gone; the methods that write raise it too.
    """

    def __init__(
        self,
        workdir: Path,
        step: int,
        steps: int,
        batch_size: int,
        started: float,
        write: bool = True,
        records: int = 0,
        writers: Sequence[MetricWriter] = (),
    ) -> None:
        self._write, self._batch_size = write, batch_size
        self._console = rich.console.Console(stderr=True, quiet=progress.is_quiet())
        self._started, self._last = started, time.perf_counter()
        if not write:
            return
        self._lines = JsonLinesWriter(workdir / "metrics.jsonl", step, records)
        # Seconds count on where the run was broken off.
        self._started -= self._lines.seconds
        self._writers = (self._lines, TensorBoardWriter(workdir / "tensorboard", step + 1), *writers)
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[figures]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=True,  # until it is entered
        )
        self._bar = self._progress.add_task("train", total=steps, completed=max(step, 0), figures="")

    def __enter__(self) -> Self:
        if self._write:
            self._progress.disable = not progress.take_terminal()
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._write:
            self._progress.stop()
            if not self._progress.disable:
                progress.release_terminal()
            for writer in self._writers:
                writer.close()

    @property
    def records(self) -> int:
        """Number of records so far."""
        return self._lines.records if self._write else 0

    def log(self, text: str) -> None:
        """Prints a line on standard error."""
        if self._write:
            self._console.print(text, highlight=False, markup=False)

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        if self._write:
            self._progress.update(self._bar, completed=step)

    def write_training(
        self, step: int, means: Mapping[str, float], stats: Sequence[throughput.BatchStats], peak: float, programs: int
    ) -> None:
        """Records the steps since the last record, and their speed.

        Args:
          step: Last of these steps.
          means: Mean loss and norms of these steps.
          stats: Contents of their batches.
          peak: FLOP/s that a device can do.
          programs: Number of programs that the step has been compiled to so far.
        """
        now = time.perf_counter()
        seconds = now - self._last
        self._last = now
        rates = {
            "examples_per_second": len(stats) * self._batch_size / seconds,
            **throughput.rates(stats, seconds, peak),
        }
        counts = {"programs": programs, "peak_bytes": throughput.peak_bytes()}
        self.write("train", step, {**means, **rates, **counts})
        if self._write:
            shown = f"loss {means['loss']:.4f}  {throughput.line({**rates, **counts})}"
            self._progress.update(self._bar, completed=step, figures=shown)
            if self._progress.disable:
                self.log(f"step {step}: {shown}")

    def write_program(self, step: int, number: int, compiled: FittingProgram, flops: float) -> None:
        """Records what a program of the training step costs on one device.

        These are the FLOPs of its matrix products, left out where they are not known (0), and by the compiler the bytes
        of arguments, outputs and temporary arrays together; those of the arguments (parameters, optimizer states, a
        batch) also by themselves; and the number of texts that it encodes at a time, where these are not all.
        """
        needed = program_bytes(compiled.program)
        figures = {"number": number, "bytes": needed.total, "arguments": needed.arguments}
        if compiled.item_micro_batch:
            figures["item_micro_batch"] = compiled.item_micro_batch
        self.write("program", step, {**figures, "flops": flops} if flops else figures)

    @contextlib.contextmanager
    def exclude_from_timing(self) -> Iterator[None]:
        """Leaves an evaluation, a checkpoint or a compilation out of the rates."""
        began = time.perf_counter()
        yield
        self._last += time.perf_counter() - began

    def write(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Writes a record to every destination."""
        if not self._write:
            return
        seconds = round(time.perf_counter() - self._started, 3)
        for writer in self._writers:
            writer.write({"kind": kind, "step": step, "seconds": seconds, **figures})
