"""Writers of a run's records: JSON lines always, TensorBoard, and Weights & Biases where it is asked for."""

import contextlib
import hashlib
import io
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from llm4rec_jax.checksums import Damaged
from llm4rec_jax.io import write_bytes, writing
from llm4rec_jax.training.run_id import run_id

_CHECK = "check"
_REMEDY = "bring it back from a copy, or remove it to go on without its records, and without their seconds"


class MetricWriter(Protocol):
    """A destination for the records of a run."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes {"kind": …, "step": …, "seconds": …, name: number, …}."""
        ...

    def close(self) -> None:
        """Ends the destination, once all is written."""
        ...


class JsonLinesWriter:
    """Writes `metrics.jsonl`, a record a line, each with a checksum of the run's id, all lines before it and itself.

    Args:
      file: File to go on with; it is made where it does not exist.
      step: Step of the checkpoint that the run goes on from; later records are dropped.
      records: Number of records at that checkpoint.

    Attributes:
      seconds: Seconds at the last record that is kept.
      records: Number of records in the file.

    Raises:
      Damaged: The file is damaged, or some of its records are lost.
      NotWritten: The disk is full, read-only or gone; `write` raises it too.
    """

    def __init__(self, file: Path, step: int, records: int = 0) -> None:
        # A run that starts takes nothing over from an earlier try.
        kept = [record for record in read(file) if record["step"] <= step] if step >= 0 else []
        if len(kept) < records and file.exists():
            raise Damaged(
                f"{file} is damaged: {len(kept)} of the {records} records up to step {step} are left; {_REMEDY}"
            )
        self.file, self.records, self._link = file, 0, run_id(file.parent) or ""
        self.seconds = kept[-1]["seconds"] if kept else 0.0
        write_bytes(file, "".join(self._line(record) for record in kept).encode())
        with writing(file):
            self._lines = file.open("ab", buffering=0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a record, which is on disk when this returns."""
        with writing(self.file):
            _write_all(self._lines, self._line(record).encode())

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()

    def _line(self, record: Mapping[str, Any]) -> str:
        self._link = _linked(self._link, record)
        self.records += 1
        return json.dumps({**record, _CHECK: self._link}) + "\n"


class TensorBoardWriter:
    """Writes scalars for TensorBoard: a file a start, which replaces the earlier ones from a step on.

    Records are written at once. tensorboardX's own SummaryWriter uses a thread, which ends when the disk is full and
    leaves the run waiting for it.

    Args:
      folder: Folder of the event files.
      step: First step that this start writes.
    """

    def __init__(self, folder: Path, step: int) -> None:
        with _hidden("torch"):
            from tensorboardX.proto import event_pb2
            from tensorboardX.record_writer import masked_crc32c
            from tensorboardX.summary import scalar

        messages: Any = event_pb2  # generated when it is imported, which type checkers do not see
        self._event, self._checksum, self._scalar = messages.Event, masked_crc32c, scalar
        self._path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        with writing(self._path):
            folder.mkdir(exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        self._add(0, file_version="brain.Event:2")
        self._add(step, session_log=messages.SessionLog(status=messages.SessionLog.START))

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends the numbers of a record as scalars named kind/name."""
        for name, value in _numbers(record).items():
            self._add(record["step"], summary=self._scalar(f"{record['kind']}/{name}", value))

    def _add(self, step: int, **content: Any) -> None:
        """Appends a TFRecord: the length of an event, the event, and the checksum of each."""
        event = self._event(wall_time=time.time(), step=step, **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        parts = [length, struct.pack("<I", self._checksum(length)), event, struct.pack("<I", self._checksum(event))]
        with writing(self._path):
            _write_all(self._file, b"".join(parts))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class WandbWriter:
    """Sends records to Weights & Biases. A run that goes on continues the same W&B run.

    Without an API key it records offline, in WORKDIR/wandb, for `wandb sync`.

    Args:
      project: Name of the W&B project.
      workdir: Folder of the run; its name is the run's name.
      config: Configuration to show with the run.

    Raises:
      ValueError: The package wandb is not installed.
    """

    def __init__(self, project: str, workdir: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports] # an extra
        except ModuleNotFoundError:
            raise ValueError(
                "config.log.wandb needs the package wandb: pip install 'llm4rec-jax[wandb]', or leave the key out"
            ) from None
        offline = "WANDB_API_KEY" not in os.environ and "WANDB_MODE" not in os.environ
        self._run = wandb.init(
            project=project,
            name=workdir.name,
            # The folder names the run, so that a run that goes on is the same one.
            id=hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16],
            resume="allow",
            dir=workdir,
            config=dict(config),
            mode="offline" if offline else None,
        )

    def write(self, record: Mapping[str, Any]) -> None:
        """Sends the numbers of a record, named kind/name."""
        scalars = {f"{record['kind']}/{name}": value for name, value in _numbers(record).items()}
        self._run.log({**scalars, "step": record["step"]})

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Sends the metrics of a finished run: as a table with a row a metric, and in the summary as part/name."""
        import wandb  # pyright: ignore[reportMissingImports] # an extra

        parts = [part for part in ("validation", "test") if part in result]
        names = list(dict.fromkeys(name for part in parts for name in result[part]))
        rows = [[name, *(result[part].get(name) for part in parts)] for name in names]
        self._run.log({"metrics": wandb.Table(columns=["metric", *parts], data=rows)})
        for part in parts:
            self._run.summary.update({f"{part}/{name}": value for name, value in result[part].items()})

    def close(self) -> None:
        """Ends the W&B run."""
        self._run.finish()


def read(file: Path) -> list[dict[str, Any]]:
    """Reads the records of a `metrics.jsonl`; a last line that a kill cut short is left out.

    Raises:
      Damaged: A line differs from what was written, lines before the last are lost, or the file is another run's. Files
        of older versions have no checksums.
    """
    if not file.is_file():
        return []
    own = run_id(file.parent)
    records, link, checked = [], own or "", own is not None
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
            or_else = "the file is of another run" if number == 1 else "lines before it are changed or lost"
            raise Damaged(f"{file}, line {number} is damaged, or {or_else}; {_REMEDY}")
        records.append(record)
    return records


def _linked(before: str, record: Mapping[str, Any]) -> str:
    """Returns the checksum of a record that follows on one with the checksum `before`."""
    return hashlib.sha256((before + json.dumps(record, sort_keys=True)).encode()).hexdigest()[:16]


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name not in ("kind", "step", "seconds")}


def _write_all(file: io.FileIO, content: bytes) -> None:
    """Writes all bytes; the system takes only a part at first where a disk is nearly full."""
    while content:
        content = content[file.write(content) :]


@contextlib.contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Hides a package from imports, unless it has been imported before.

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
