"""The order in which runs are started, and what becomes of them: one loop for every executor."""

import contextlib
import dataclasses
import enum
import os
import shlex
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.sweeps import trials
from experiments.sweeps.executors import Executor, Handle
from experiments.sweeps.processes import Ended, Job, started
from experiments.sweeps.trials import TrialRun

# Seconds after which a run that another process was working on is tried again.
_BUSY = 5.0
# Nobody crashes by SIGTERM: somebody wanted the place, and the run has saved or had nothing to save.
_TERMINATED = (0, -signal.SIGTERM, 128 + signal.SIGTERM)


class Readiness(enum.Enum):
    """Whether the runs that a process needs have finished."""

    READY = enum.auto()
    WAITING = enum.auto()


class Blocked(NamedTuple):
    """A process that can never be started, and why."""

    reason: str


@dataclasses.dataclass
class Entry:
    """A run and what has become of it.

    Attributes:
      run: the run.
      status: waiting, running, finished, failed or interrupted, or what `Schedule.cancel` was told.
      error: of a failed one, the line that says why.
      began: `time.monotonic()` when it was started, by this schedule; None before.
      ended: `time.monotonic()` when it ended.
      seconds: that it took.
    """

    run: TrialRun
    status: str = "waiting"
    error: str = ""
    began: float | None = None
    ended: float | None = None
    seconds: float | None = None


@dataclasses.dataclass
class _Work:
    """One process: the entries that it runs, normally one."""

    entries: list[Entry]
    command: tuple[str, ...]
    not_before: float = 0.0
    cancelled: str | None = None


class _Running(NamedTuple):
    """A process that works."""

    work: _Work
    job: Job
    handle: Handle


class Schedule:
    """Runs, and the processes that work on them.

    Args:
      executor: starts processes.
      workers: processes at a time.
      timeout: seconds that a process may take; None for any.
      changed: called with the entry whose status has changed.
      records: whether it writes into the run folders; several schedules may work on the same runs, of which one does.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        workers: int = 1,
        timeout: float | None = None,
        changed: Callable[[Entry], None] = lambda entry: None,
        records: bool = True,
    ) -> None:
        self._executor, self._workers, self._timeout = executor, workers, timeout
        self._changed, self._records = changed, records
        self._waiting: list[_Work] = []
        self._running: list[_Running] = []
        self._by_folder: dict[Path, Entry] = {}
        self.stopping = False

    def add(self, runs: Sequence[TrialRun], command: Sequence[str] | None = None) -> list[Entry]:
        """Runs that one process works on, by default one run by its own command; it is done when each has a result.

        Returns their entries; those that have finished already are so marked, and with all of them nothing is started.
        """
        for run in runs if self._records else ():
            trials.open_folder(run)
        entries = [Entry(run, "finished" if run.finished else "waiting") for run in runs]
        self._by_folder.update({entry.run.folder: entry for entry in entries})
        if any(entry.status == "waiting" for entry in entries):
            self._waiting.append(_Work(entries, tuple(runs[0].command if command is None else command)))
        return entries

    @property
    def free(self) -> bool:
        """Whether one more process could be started now."""
        return not self.stopping and len(self._running) + len(self._waiting) < self._workers

    @property
    def pending(self) -> bool:
        """Whether anything runs, can be started, or has to be marked as blocked."""
        if self._running:
            return True
        return not self.stopping and any(self._readiness(work) is not Readiness.WAITING for work in self._waiting)

    def tick(self) -> None:
        """Looks after the processes, and starts those that can be."""
        for running in list(self._running):
            work, job, handle = running
            for entry in work.entries:
                if entry.began is None and started(job):
                    entry.began = time.monotonic()
                    self._mark(entry, "running")
            if (ended := handle.poll()) is not None:
                self._running.remove(running)
                self._settle(work, job, ended)
        for work in list(self._waiting):
            readiness = self._readiness(work)
            if isinstance(readiness, Blocked):
                self._waiting.remove(work)
                for entry in work.entries:
                    self._mark(entry, "failed", readiness.reason)
            elif (
                readiness is Readiness.READY
                and not self.stopping
                and len(self._running) < self._workers
                and time.monotonic() >= work.not_before
            ):
                self._waiting.remove(work)
                self._submit(work)

    def cancel(self, entry: Entry, status: str) -> None:
        """Asks an entry's process to save and stop; what it has not finished then gets this status."""
        for work, _, handle in self._running:
            if entry in work.entries and work.cancelled is None:
                work.cancelled = status
                handle.cancel()

    def stop(self) -> None:
        """Starts nothing more, and asks every process to save and stop."""
        self.stopping = True
        for work, _, _ in self._running:
            self.cancel(work.entries[0], "interrupted")

    def _readiness(self, work: _Work) -> Readiness | Blocked:
        """Returns whether a process can be started, has to wait for another run, or never can be."""
        missing = [
            (folder, name)
            for entry in work.entries
            for folder, name in entry.run.needs.items()
            if not (folder / "result.json").exists()
        ]
        for folder, name in missing:
            if folder not in self._by_folder or self._by_folder[folder].status == "failed":
                return Blocked(f"not started, since {name} failed")
        return Readiness.WAITING if missing else Readiness.READY

    def _submit(self, work: _Work) -> None:
        folders = tuple(str(entry.run.folder) for entry in work.entries)
        job = Job(uuid.uuid4().hex, work.command, folders, os.getcwd(), self._timeout)
        work.cancelled = None
        for entry in work.entries:
            entry.began = None
        try:
            handle = self._executor.submit(job)
        except OSError as error:
            self._settle(work, job, Ended(1, note=f"could not be started: {error}"))
        else:
            self._running.append(_Running(work, job, handle))

    def _settle(self, work: _Work, job: Job, ended: Ended) -> None:
        if ended.busy:
            work.not_before = time.monotonic() + _BUSY
            self._waiting.append(work)
            return
        for entry in work.entries:
            failure = entry.run.folder / "failure.txt"
            entry.ended, entry.seconds = time.monotonic(), ended.seconds
            if entry.run.finished:
                if self._records:
                    failure.unlink(missing_ok=True)
                self._mark(entry, "finished")
            elif work.cancelled is not None:
                self._mark(entry, work.cancelled)
            elif not ended.late and ended.code in _TERMINATED:
                self._mark(entry, "interrupted")
            else:
                if self._records:
                    failure.write_text(_failure(entry, job, ended), encoding="utf-8")
                self._mark(entry, "failed", _why(ended, entry.run.folder))

    def _mark(self, entry: Entry, status: str, error: str = "") -> None:
        if entry.status != status:
            entry.status, entry.error = status, error
            self._changed(entry)


def drive(
    schedule: Schedule,
    beat: Callable[[], None],
    log: Callable[[str], None] = lambda text: None,
    interval: float = 0.2,
) -> int | None:
    """Runs a schedule to its end.

    On SIGINT or SIGTERM the processes are asked to save and stop, and waited for; a second one does what it did before.

    Args:
      schedule: may be added to by `beat`.
      beat: called after every tick.
      log: told when a signal has come.
      interval: seconds between them.

    Returns:
      The signal that stopped it, None when it came to its end.
    """
    with _signals() as received:
        try:
            while True:
                schedule.tick()
                beat()
                if received and not schedule.stopping:
                    log(f"{signal.Signals(received[0]).name}: waiting for the trials that run to save and stop")
                    schedule.stop()
                if not schedule.pending:
                    return received[0] if received else None
                time.sleep(interval)
        except BaseException:
            schedule.stop()
            raise


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    previous = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _how(ended: Ended) -> str:
    if ended.note:
        return ended.note
    if ended.code >= 0:
        return f"exit code {ended.code}"
    name = signal.Signals(-ended.code).name
    return f"killed by {name}{': out of memory, perhaps' if ended.code == -signal.SIGKILL else ''}"


def _why(ended: Ended, folder: Path) -> str:
    """Returns the process's error of this folder, else the exception of its last traceback, else its last line."""
    if ended.note or ended.code < 0:
        return _how(ended)
    lines = [line for line in ended.output.splitlines() if line.strip()]
    own = f"error of {folder.name}: "
    if said := [line.removeprefix(own) for line in lines if line.startswith(own)]:
        return said[-1]
    traces = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if traces:
        for line in lines[traces[-1] + 1 :]:
            if not line.startswith(" "):
                return line
    return lines[-1] if lines else _how(ended)


def _failure(entry: Entry, job: Job, ended: Ended) -> str:
    others = len(job.folders) - 1
    shared = f" (in one process with {others} other{'s' if others > 1 else ''})" if others else ""
    return (
        f"trial: {entry.run.trial.name}{shared}\n"
        f"error: {_why(ended, entry.run.folder)}\n"
        f"command: python {shlex.join(job.command)}\n"
        f"ended: {_how(ended)}, after {ended.seconds:.0f} s, at {time.strftime('%F %T')}\n"
        f"all output: {job.folders[0]}/log.txt; the end of it:\n\n{ended.output.strip()}\n"
    )
