"""A job's process, started, watched and ended on the machine that it runs on.

So a crash, a hang and a request to stop come out alike wherever that is. The machines share the file system of the run
folders. This module is imported where jobs run: it does without jax.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from llm4rec_jax.runs.locks import FolderInUse, Lock, hand_on

_TAIL = 20_000  # bytes of output that are kept with a failure


class Job(NamedTuple):
    """A command, and the run folders that it works in.

    Attributes:
      token: no other job has it.
      command: arguments of the Python interpreter.
      folders: absolute paths; the output is appended to log.txt in the first.
      directory: where the command is run.
      timeout: seconds after which it is stopped; None for any.
      grace: seconds from SIGTERM to SIGKILL.
    """

    token: str
    command: tuple[str, ...]
    folders: tuple[str, ...]
    directory: str
    timeout: float | None = None
    grace: float = 60.0


class Ended(NamedTuple):
    """The end of a job.

    Attributes:
      code: the exit code; negative, the signal that killed it.
      output: the end of what it wrote.
      seconds: that it took.
      note: reason that the process itself cannot give: why it was killed, or was not run.
      late: it was stopped since it took longer than its timeout.
      busy: it was not run, since another process works in one of its folders.
    """

    code: int
    output: str = ""
    seconds: float = 0.0
    note: str = ""
    late: bool = False
    busy: bool = False


class Process:
    """A job's process on this machine. It holds the lock of each run folder, and hands it on to the process: as long as
    either lives no other starts in that folder."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._began = time.monotonic()
        self._stopped: float | None = None
        self._late = False
        self._killed = False
        self._ended: Ended | None = None
        self._locks: list[Lock] = []
        for folder in job.folders:
            try:
                self._locks.append(Lock(Path(folder)))
            except FolderInUse as error:
                self._end(Ended(os.EX_TEMPFAIL, note=str(error), busy=True))
                return
        self._log = Path(job.folders[0]) / "log.txt"
        with self._log.open("ab") as log:
            log.write(f"--- {time.strftime('%F %T')} on {socket.gethostname()}: {' '.join(job.command)}\n".encode())
            self._offset = log.tell()
            log.flush()
            self._child = subprocess.Popen(
                [sys.executable, *job.command],
                cwd=job.directory,
                # A crash in compiled code leaves a traceback too.
                env={**os.environ, "PYTHONFAULTHANDLER": "1", **hand_on(self._locks)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal reaches the sweep only, which asks for what is saved and stopped.
                start_new_session=True,
                pass_fds=[lock.fileno() for lock in self._locks],
            )
        for lock in self._locks:
            command = " ".join(job.command)
            lock.note(pid=self._child.pid, command=command, token=job.token, watcher=os.getpid())

    def poll(self) -> Ended | None:
        """Returns how the job ended; None while it runs. Stops a job that is late, and kills one that does not stop."""
        if self._ended is not None:
            return self._ended
        code = self._child.poll()
        now = time.monotonic()
        if code is None:
            if self._job.timeout is not None and now - self._began > self._job.timeout:
                self._late = True
            if self._late or stop_file(self._job).exists():
                self.stop()
            if self._stopped is not None and now - self._stopped > self._job.grace:
                self._killed = True
                os.killpg(self._child.pid, signal.SIGKILL)
            return None
        note = ""
        if self._late:
            note = f"stopped after {self._job.timeout:g} s"
            if self._killed:
                note += f", and killed {self._job.grace:g} s later"
        return self._end(Ended(code, self._tail(), now - self._began, note, self._late))

    def stop(self) -> None:
        """Sends SIGTERM, once."""
        if self._ended is None and self._stopped is None:
            self._stopped = time.monotonic()
            self._child.terminate()

    def _end(self, ended: Ended) -> Ended:
        for lock in self._locks:
            lock.close()
        stop_file(self._job).unlink(missing_ok=True)
        self._ended = ended
        return ended

    def _tail(self) -> str:
        with self._log.open("rb") as log:
            log.seek(max(self._offset, self._log.stat().st_size - _TAIL))
            return log.read().decode(errors="replace")


def execute(job: Job) -> Ended:
    """Runs a job and waits for it. An exception during the wait stops the job before it goes on."""
    process = Process(job)
    try:
        return wait(process, 0.5)
    except BaseException:
        process.stop()
        wait(process, 0.1)
        raise


def wait(process: Process, interval: float) -> Ended:
    """Polls a process every `interval` seconds until it has ended."""
    while (ended := process.poll()) is None:
        time.sleep(interval)
    return ended


def started(job: Job) -> bool:
    """Returns whether a process of the job has been started, on any machine."""
    try:
        holder = json.loads((Path(job.folders[0]) / "lock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return holder.get("token") == job.token


def stop_file(job: Job) -> Path:
    """Tells the machine that a job runs on to stop it."""
    return Path(job.folders[0]) / f"stop-{job.token}"
