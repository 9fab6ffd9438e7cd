"""What a run writes while it trains: `metrics.jsonl`, TensorBoard events, and a progress bar."""

import contextlib
import hashlib
import io
import json
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import rich.console
import rich.progress

from llm4rec_jax.checksums import Damaged
from llm4rec_jax.io import write_bytes, writing
from llm4rec_jax.training import throughput as speed

_CHECK = "check"
_REMEDY = "bring it back from a copy, or remove it to go on without its records, and without their seconds"


class Journal:
    """The records of one run. Only the first process writes.

    Args:
      workdir: the run's folder.
      step: the step of the checkpoint that the run goes on from, -1 when it starts; later records are dropped.
      steps: where it ends.
      batch_size: examples a step.
      started: `time.perf_counter()` when the work began; seconds count from there.
      write: False makes every method do nothing.
      records: how many there were when that checkpoint was made.

    Raises:
      Damaged: the file that is there, or some of those records are lost.
      NotWritten: the disk is full, read-only or gone; so do the methods that write.
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
    ) -> None:
        self._write, self._batch_size = write, batch_size
        self._console = rich.console.Console(stderr=True)
        self._started, self._last = started, time.perf_counter()
        self.records = 0
        if not write:
            return
        self.file = workdir / "metrics.jsonl"
        kept = [r for r in read(self.file) if r["step"] <= step]
        if len(kept) < records and self.file.exists():
            raise Damaged(
                f"{self.file} is damaged: {len(kept)} of the {records} records up to step {step} are left; {_REMEDY}"
            )
        # Seconds count on where the run was broken off.
        self._started -= kept[-1]["seconds"] if kept else 0.0
        self._link = ""
        write_bytes(self.file, "".join(self._line(r) for r in kept).encode())
        with writing(self.file):
            self._lines = self.file.open("ab", buffering=0)
        self._events = _Events(workdir / "tensorboard", step + 1)
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

    def train(
        self, step: int, figures: Mapping[str, float], done: Sequence[speed.Work], peak: float, programs: int
    ) -> None:
        """Records figures of the steps up to `step` since the last record, and how fast they were.

        Args:
          done: what these steps read.
          peak: FLOP/s that a device can do.
          programs: how many the step has been compiled to so far.
        """
        now = time.perf_counter()
        seconds = now - self._last
        self._last = now
        rates = {"examples_per_second": len(done) * self._batch_size / seconds, **speed.figures(done, seconds, peak)}
        counts = {"programs": programs, "peak_bytes": speed.peak_bytes()}
        self.record("train", step, {**figures, **rates, **counts})
        if self._write:
            shown = f"loss {figures['loss']:.4f}  {speed.line({**rates, **counts})}"
            self._progress.update(self._task, completed=step, figures=shown)
            if self._progress.disable:
                self.say(f"step {step}: {shown}")

    def program(self, step: int, number: int, compiled: jax.stages.Compiled, flops: float) -> None:
        """Records what the compiler says that a program of the training step costs, on one device.

        FLOPs a step, unless they are 0, not known; and the bytes of arguments, outputs and temporary arrays at once;
        those of the arguments apart, which are parameters, optimizer states and a batch.
        """
        memory = compiled.memory_analysis()
        used = arguments = 0
        if memory is not None:
            arguments = memory.argument_size_in_bytes
            used = arguments + memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes
        figures = {"number": number, "bytes": used, "arguments": arguments}
        self.record("program", step, {**figures, "flops": flops} if flops else figures)

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
        with writing(self.file):
            _write(self._lines, self._line(record).encode())
        self._events.write({f"{kind}/{name}": value for name, value in figures.items()}, step)

    def _line(self, record: Mapping[str, Any]) -> str:
        """The next line: a record, and a checksum of it and of all before it."""
        self._link = _linked(self._link, record)
        self.records += 1
        return json.dumps({**record, _CHECK: self._link}) + "\n"


@contextlib.contextmanager
def _unseen(package: str) -> Iterator[None]:
    """Imports find no such package, unless it has been imported before.

    tensorboardX imports torch where it is installed, for arrays that it is not given here: two seconds of a start.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # pyright: ignore[reportArgumentType] # as the import system has it
    try:
        yield
    finally:
        del sys.modules[package]


class _Events:
    """TensorBoard's file of a run: at each start another, which takes the place of the earlier ones from a step on.

    Like the lines of metrics.jsonl it is written at once. tensorboardX's own SummaryWriter has a thread for that, which
    ends when the disk is full and leaves the run waiting for it.
    """

    def __init__(self, folder: Path, step: int) -> None:
        with _unseen("torch"):
            from tensorboardX.proto import event_pb2
            from tensorboardX.record_writer import masked_crc32c
            from tensorboardX.summary import scalar

        messages: Any = event_pb2  # generated when it is imported, which type checkers do not see
        self._event, self._sum, self._scalar = messages.Event, masked_crc32c, scalar
        self._path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        with writing(self._path):
            folder.mkdir(exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        self._add(0, file_version="brain.Event:2")
        self._add(step, session_log=messages.SessionLog(status=messages.SessionLog.START))

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._add(step, summary=self._scalar(name, value))

    def _add(self, step: int, **what: Any) -> None:
        """Appends a TFRecord: the length of an event, the event, and the checksum of each."""
        event = self._event(wall_time=time.time(), step=step, **what).SerializeToString()
        length = struct.pack("<Q", len(event))
        with writing(self._path):
            _write(self._file, b"".join([length, self._packed(length), event, self._packed(event)]))

    def _packed(self, content: bytes) -> bytes:
        return struct.pack("<I", self._sum(content))

    def close(self) -> None:
        self._file.close()


def _write(file: io.FileIO, content: bytes) -> None:
    """Writes all of it: of what doesn't fit on a disk the system takes a part at first."""
    while content:
        content = content[file.write(content) :]


@contextlib.contextmanager
def aside(journals: Sequence[Journal]) -> Iterator[None]:
    """`Journal.aside` of several."""
    with contextlib.ExitStack() as opened:
        for journal in journals:
            opened.enter_context(journal.aside())
        yield


def read(file: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a last line that a kill cut short is left out.

    Raises:
      Damaged: a line that is not what was written, or lines that are lost before the last. Those of older versions have
        no checksums.
    """
    if not file.is_file():
        return []
    records, link, checked = [], "", False
    # Every whole line ends in a newline, so what follows the last one is a piece.
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            check = record.pop(_CHECK, None)
            if missing := {"kind", "step"} - record.keys():
                raise KeyError(*sorted(missing))
        except (ValueError, AttributeError, KeyError, RecursionError) as error:
            raise Damaged(f"{file}, line {number} is damaged ({error!r}); {_REMEDY}") from error
        link = _linked(link, record)
        checked = checked or check is not None
        if checked and check != link:
            raise Damaged(f"{file}, line {number} is damaged, or lines before it are changed or lost; {_REMEDY}")
        records.append(record)
    return records


def _linked(before: str, record: Mapping[str, Any]) -> str:
    """The checksum of a record that follows on what has another."""
    return hashlib.sha256((before + json.dumps(record, sort_keys=True)).encode()).hexdigest()[:16]
