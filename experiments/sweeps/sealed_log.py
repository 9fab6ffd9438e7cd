"""Optuna's journal as a file that tells when it was changed."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from llm4rec_jax.checksums import Damaged
from llm4rec_jax.io import writing

_SEAL = "sha256"


class SealedLog(BaseJournalBackend):
    """A file of one JSON object a line, each with a SHA-256 over itself and the seal of the line before.

    One process has it at a time. A line that a kill has cut short is dropped. Files of older versions have no seals,
    and lines before the first sealed one are read as they are.

    Raises:
      Damaged: a line that was changed, moved or taken out.
      NotWritten: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seal = ""
        self._logs: list[dict[str, Any]] = []
        with writing(path):
            self._file = path.open("a+b")
            self._file.seek(0)
            content = self._file.read()
            self._file.truncate(content.rfind(b"\n") + 1)
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            log, seal = _parse(line)
            if log is None or (seal != self._next_seal(log) and (seal or self._seal)):
                self.close()
                raise Damaged(
                    f"{path} is damaged, or was changed by hand, in line {number}: bring it back from a copy, or "
                    "search in another --workdir"
                )
            self._seal = seal
            self._logs.append(log)

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        for log in logs:
            plain = json.loads(json.dumps(log))
            self._seal = self._next_seal(plain)
            self._logs.append(plain)
            with writing(self._path):
                self._file.write(json.dumps({**plain, _SEAL: self._seal}, separators=(",", ":")).encode() + b"\n")
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _next_seal(self, log: Any) -> str:
        return hashlib.sha256((self._seal + json.dumps(log, sort_keys=True)).encode()).hexdigest()


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """Returns an entry and its seal, "" without one; (None, "") for a line that holds no entry."""
    try:
        log = json.loads(line)
    except ValueError:
        return None, ""
    return (log, str(log.pop(_SEAL, ""))) if isinstance(log, dict) else (None, "")
