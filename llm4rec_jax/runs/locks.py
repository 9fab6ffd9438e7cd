"""One process at a time works in a folder: a lock that the system takes back from whoever dies.

A sweep locks the folders of its runs and hands the locks on to the processes that it starts. This module does without
jax.
"""

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llm4rec_jax.io import writing

_HANDED_ON = "LLM4REC_JAX_LOCKS"


class FolderInUse(ValueError):
    """Another process works in the folder. The message names it."""


class Lock:
    """The lock of a folder, held until it is closed or its process, and all that it was handed on to, have ended.

    One that was handed on to this process is held already.

    Args:
      folder: holds it in the file `lock`, with who has it; made if need be.
      holder: details of this process to record beside its host, pid, command and start.

    Raises:
      FolderInUse: another process has it.
      NotWritten: the folder cannot be written in.
    """

    def __init__(self, folder: Path, **holder: Any) -> None:
        self._path = folder / "lock"
        with writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+", encoding="utf-8")
        if _handed_on(self._file.fileno()):
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            who = _described(self._file.read())
            self.close()
            raise FolderInUse(
                f"{folder} is worked in by {who}: wait until it has ended, stop it, or give another --workdir"
            ) from None
        self.note(pid=os.getpid(), command=" ".join(sys.argv), **holder)

    def note(self, **holder: Any) -> None:
        """Says who has it."""
        about = {"host": socket.gethostname(), "since": time.strftime("%F %T"), **holder}
        with writing(self._path):
            self._file.truncate(0)
            self._file.write(json.dumps(about) + "\n")
            self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def hand_on(locks: Iterable[Lock]) -> dict[str, str]:
    """Environment variables for a process that gets the locks' files by `pass_fds`."""
    return {_HANDED_ON: ",".join(str(lock.fileno()) for lock in locks)}


def holder_lives(folder: Path) -> bool | None:
    """Returns whether the process lives that locked a folder last; None where it is one of another machine.

    Nothing is locked, so a run that starts meanwhile is not disturbed.
    """
    try:
        held = json.loads((folder / "lock").read_text(encoding="utf-8"))
        if held["host"] != socket.gethostname():
            return None
        os.kill(held["pid"], 0)
    except (FileNotFoundError, ValueError, KeyError, TypeError, ProcessLookupError):
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True


def _handed_on(own: int) -> bool:
    """Returns whether the file with this number was handed on to this process."""
    for number in filter(None, os.environ.get(_HANDED_ON, "").split(",")):
        try:
            if os.path.samestat(os.fstat(int(number)), os.fstat(own)):
                return True
        except OSError:
            continue
    return False


def _described(note: str) -> str:
    try:
        held = json.loads(note)
        return f"process {held['pid']} on {held['host']}, since {held['since']} ({held.get('command', 'a sweep')})"
    except (ValueError, KeyError, TypeError):
        return "a process that has not said yet which it is"
