"""What a run writes while it trains: `metrics.jsonl`, TensorBoard events, and a progress bar."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import rich.console
import rich.progress


class Journal:
    """The records of one run. Only the first process writes.

    Args:
      workdir: the run's folder.
      step: the step of the checkpoint that the run goes on from, -1 when it starts; later records are dropped.
      steps: where it ends.
      batch_size: examples a step.
      started: `time.perf_counter()` when the work began; seconds count from there.
      write: False makes every method do nothing.
    """

    def __init__(
        self, workdir: Path, step: int, steps: int, batch_size: int, started: float, write: bool = True
    ) -> None:
        self._write, self._batch_size = write, batch_size
        self._console = rich.console.Console(stderr=True)
        self._started, self._last = started, time.perf_counter()
        if not write:
            return
        # It imports torch where that is installed, which takes seconds.
        from tensorboardX import SummaryWriter

        self.file = workdir / "metrics.jsonl"
        kept = [r for r in read(self.file) if r["step"] <= step]
        # Seconds count on where the run was broken off.
        self._started -= kept[-1]["seconds"] if kept else 0.0
        scratch = self.file.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        os.replace(scratch, self.file)
        self._lines = self.file.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1, flush_secs=30)
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[figures]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("train", total=steps, completed=max(step, 0), figures="")

    def __enter__(self) -> Self:
        if self._write:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._write:
            self._progress.stop()
            self._lines.close()
            self._events.close()

    def say(self, text: str) -> None:
        """A line on standard error."""
        if self._write:
            self._console.print(text, highlight=False, markup=False)

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._write:
            self._progress.update(self._task, completed=step)

    def train(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Records figures of `steps` steps up to `step`, with examples/s since the last record."""
        now = time.perf_counter()
        rate = steps * self._batch_size / (now - self._last)
        self._last = now
        self.record("train", step, {**figures, "examples_per_second": rate})
        if self._write:
            shown = f"loss {figures['loss']:.4f}  {rate:,.0f} examples/s"
            self._progress.update(self._task, completed=step, figures=shown)

    def program(self, step: int, number: int, compiled: jax.stages.Compiled) -> None:
        """Records what the compiler says that a program of the training step costs, on one device.

        FLOPs a step, and the bytes of arguments, outputs and temporary arrays at once; those of the arguments apart,
        which are parameters, optimizer states and a batch.
        """
        costs, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
        used = arguments = 0
        if memory is not None:
            arguments = memory.argument_size_in_bytes
            used = arguments + memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes
        figures = {"number": number, "flops": costs.get("flops", 0.0), "bytes": used, "arguments": arguments}
        self.record("program", step, figures)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leaves what is done in it (an evaluation, a checkpoint, a compilation) out of the rates."""
        began = time.perf_counter()
        yield
        self._last += time.perf_counter() - began

    def record(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """Appends a record and its TensorBoard scalars."""
        if not self._write:
            return
        seconds = time.perf_counter() - self._started
        record: dict[str, Any] = {"kind": kind, "step": step, "seconds": round(seconds, 3), **figures}
        self._lines.write(json.dumps(record) + "\n")
        self._lines.flush()
        for name, value in figures.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)


@contextlib.contextmanager
def aside(journals: Sequence[Journal]) -> Iterator[None]:
    """`Journal.aside` of several."""
    with contextlib.ExitStack() as opened:
        for journal in journals:
            opened.enter_context(journal.aside())
        yield


def read(file: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a last line that a kill cut short is left out."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    # Every whole line ends in a newline, so what follows the last one is a piece.
    return [json.loads(line) for line in lines[:-1] if line]
