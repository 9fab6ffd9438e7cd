"""Files that tell when they are damaged: each carries, or a manifest beside it has, a SHA-256 of what it held.

Files are written under another name and renamed, so that they are whole or not there. Files that are older than the
checksums have none, and are read as they are.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from llm4rec_jax.io import write_bytes

_KEY, _PREFIX = "checksum", "sha256:"
# In Parquet the checksum of the file, with this in its place, stands among the metadata.
_MARK, _BLANK = b"llm4rec_jax.sha256", b"0" * 64
_ABOUT = "llm4rec_jax.about"
_PLACE = re.compile(re.escape(_MARK) + rb".{1,4}?([0-9a-f]{64})", re.DOTALL)
MANIFEST = "checksums.json"


class Damaged(ValueError):
    """A file that is not what was written. The message names it, says what is wrong, and the remedy if there is one."""


# ----------------------------------------------------------------------------------------------------------------- JSON
def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object, and under "checksum" that of what it says; NotWritten."""
    plain = json.loads(json.dumps(value, default=float))
    write_bytes(path, (json.dumps({**plain, _KEY: _of_value(plain)}, indent=2) + "\n").encode())


def read_json(path: Path, required: bool = False) -> Any:
    """Reads the content that `write_json` wrote, or JSON without a checksum unless one is required.

    Raises:
      Damaged: it is no JSON, or says something else than what was written.
      OSError: it cannot be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({error})") from error
    if not isinstance(value, dict):
        if required:
            raise Damaged(f"{path} is damaged: it holds no object")
        return value
    sealed = value.pop(_KEY, None)
    if sealed is None and not required and not any(str(own).startswith(_PREFIX) for own in value.values()):
        return value
    if sealed != _of_value(value):
        raise Damaged(f"{path} is damaged, or was changed by hand: its checksum is that of something else")
    return value


def _of_value(value: Any) -> str:
    return _PREFIX + hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# -------------------------------------------------------------------------------------------------------------- Parquet
def write_parquet(path: Path, table: pl.DataFrame, about: str = "") -> None:
    """Writes a table, and among its metadata a word about it and the checksum of the whole file; NotWritten."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, metadata={_MARK.decode(): _BLANK.decode(), _ABOUT: about})
    content = buffer.getvalue()
    (place,) = _PLACE.finditer(content)
    write_bytes(path, _put(content, place, hashlib.sha256(content).hexdigest().encode()))


def read_parquet(path: Path, required: bool = False) -> pl.DataFrame:
    """Reads the table that `write_parquet` wrote, or one without a checksum unless one is required.

    Raises:
      Damaged: it is no table, or not what was written.
      OSError: it cannot be read.
    """
    content = path.read_bytes()
    places = list(_PLACE.finditer(content))
    # Before anything is parsed: Polars may panic at what is damaged.
    if len(places) == 1:
        if hashlib.sha256(_put(content, places[0], _BLANK)).hexdigest().encode() != places[0][1]:
            raise Damaged(f"{path} is damaged, or was changed by hand: its checksum is that of something else")
    elif required or places:
        raise Damaged(f"{path} is damaged: its checksum is {'there twice' if places else 'gone'}")
    try:
        return pl.read_parquet(io.BytesIO(content))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise Damaged(f"{path} is damaged ({error})") from error


def read_parquet_about(path: Path) -> str:
    """Returns the word about a table that `write_parquet` wrote; "" where there is none."""
    return pl.read_parquet_metadata(path).get(_ABOUT, "")


def _put(content: bytes, place: re.Match[bytes], value: bytes) -> bytes:
    return content[: place.start(1)] + value + content[place.end(1) :]


# -------------------------------------------------------------------------------------------------------------- folders
def write_manifest(folder: Path, names: Iterable[str] | None = None) -> None:
    """Writes checksums.json: the SHA-256 of files of a folder, by default of all, however deep; NotWritten."""
    if names is None:
        names = (str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file())
    sums = {name: _of_file(folder / name) for name in names if name != MANIFEST}
    write_json(folder / MANIFEST, {"files": sums})


def check_manifest(folder: Path) -> None:
    """Compares a folder with its manifest.

    Raises:
      Damaged: a file, the manifest or one of those it lists, is missing or is not what was written.
      OSError: one cannot be read.
    """
    if not (folder / MANIFEST).exists():
        raise Damaged(f"{folder / MANIFEST} is missing")
    for name, sealed in read_json(folder / MANIFEST, required=True)["files"].items():
        file = folder / name
        if not file.exists():
            raise Damaged(f"{file} is missing")
        if _of_file(file) != sealed:
            raise Damaged(f"{file} is damaged, or was changed since: its checksum is that of something else")


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
