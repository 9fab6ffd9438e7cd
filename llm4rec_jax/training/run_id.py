"""The id of a run, which stands in every file of its folder that a command reads.

`run.json` lists the configuration, data, tokenizer and versions that a run was started with. Their hash is the run's
id. A file whose id is another one has come from another run, however whole it is. Runs of older versions have no
run.json, and their files no ids.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm4rec_jax import checksums

FILE = "run.json"
KEY = "run"
"""Key of the id in JSON files and in the records of checkpoints."""


def run_id(workdir: Path) -> str | None:
    """Returns the id of the run in a folder; None where there is no run, or one of an older version.

    Raises:
      Damaged: run.json is damaged.
    """
    file = workdir / FILE
    return checksums.read_json(file, required=True)[KEY] if file.exists() else None


def hash_of(value: Any) -> str:
    """Returns a hash of a JSON value.

    Example:
      >>> hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
      True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def write(workdir: Path, start: Mapping[str, Any]) -> None:
    """Writes run.json; NotWritten.

    Args:
      workdir: Folder of the run.
      start: Configuration, data, tokenizer and versions, as JSON.
    """
    checksums.write_json(workdir / FILE, {**start, KEY: hash_of(start)})


def foreign(path: Path, found: str | None, workdir: Path) -> str | None:
    """Says how the id of a file differs from that of its folder; None where it is the run's own.

    Args:
      path: The file.
      found: The id in it.
      workdir: Folder of the run.
    """
    own = run_id(workdir)
    if found == own:
        return None
    said = "has no run's id" if found is None else f"is of the run {found}"
    folder = f"{workdir / FILE} is missing" if own is None else f"{workdir / FILE} is of the run {own}"
    return f"{path} {said}, but {folder}: one of them is not this run's. Bring the run's own back from a copy"
