"""Reading of JSON: one object a line, or one array of objects."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.sources.reading import Table, read_text

# Whole floats up to this are exact.
_EXACT_FLOAT = 2**53
_LARGEST_INTEGER = 2**63 - 1


def read_json(path: Path, *, keys: Sequence[str] | None = None, encoding: str = "utf-8") -> Table:
    """Reads a file of one JSON object a line, or of one array of objects; columns take the types of the values.

    Args:
        path: the file.
        keys: the keys that are read; None reads all, and so does a key that no object has.
        encoding: text encoding of the file.

    Raises:
        FileNotFoundError: if the file is missing.
        DataError: if the file is empty or not text of that encoding; if a row is not an object, repeats a key, holds
            NaN or half of a surrogate pair; or if a key's values have several types.
    """
    content = read_text(path, encoding)
    # Every line of a .jsonl file is one row, whatever it begins with.
    is_json = ".json" in [suffix.lower() for suffix in path.suffixes[-2:]]
    if is_json and content.lstrip()[:1] == b"[":
        values = parse(content, f"{path}", "correct the file")
        rows, name = [(number, value) for number, value in enumerate(values, 1)], "entry"
    else:
        lines = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
        rows = [
            (n, parse(line, f"{path}, line {n}: malformed row", "write one JSON object a line")) for n, line in lines
        ]
        name = "line"
    if not rows:
        raise DataError(f"{path} is empty; give a file with data")

    def locate(row: int) -> str:
        return f"{name} {rows[row][0]}"

    for row, (_, value) in enumerate(rows):
        if not isinstance(value, dict):
            raise DataError(f"{path}, {locate(row)}: malformed row, not a JSON object; write one JSON object a line")
    names = list(dict.fromkeys(key for _, value in rows for key in value))
    if keys is not None and set(keys) <= set(names):
        names = list(dict.fromkeys(keys))
    columns = [_column(key, [value.get(key) for _, value in rows], path, locate) for key in names]
    return Table(path, pl.DataFrame(columns), locate)


def parse(content: bytes, where: str, remedy: str) -> Any:
    """Parses JSON; a text that is not JSON, or repeats a key in an object, is a DataError."""
    try:
        # Decoded first: of bytes with zeros json guesses another encoding.
        value = json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_constant)
        # A lone surrogate, half of a cut emoji, is a string in Python but no text.
        if b"\\u" in content:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = repr(error.object[error.start])
        raise DataError(f"{where}, {half} is half of a character (a surrogate); correct or drop the text") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}, not JSON ({error}); {remedy}") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} occurs twice in an object")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write null where a number is missing")


def _column(key: str, values: list[Any], path: Path, locate: Callable[[int], str]) -> pl.Series:
    """Makes a column of one type, numbers of both kinds together.

    Raises:
        DataError: if types differ, or a whole number is too large for the column.
    """
    kinds = [_kind(value) for value in values]
    present = [row for row, kind in enumerate(kinds) if kind is not None]
    for row in present:
        if kinds[row] != kinds[present[0]]:
            raise DataError(
                f"{path}, {locate(row)}: the types of a key differ: {key!r} is {values[row]!r} ({kinds[row]}), but "
                f"{values[present[0]]!r} ({kinds[present[0]]}) in {locate(present[0])}; give it one type"
            )
    if present and kinds[present[0]] == "number":
        fractions = any(isinstance(value, float) for value in values)
        for row in present:
            if isinstance(values[row], int) and abs(values[row]) > (_EXACT_FLOAT if fractions else _LARGEST_INTEGER):
                beside = "a float holds, and other lines have fractions" if fractions else "64 bits hold"
                raise DataError(
                    f"{path}, {locate(row)}: {key} {values[row]} has more digits than {beside}; write a smaller number"
                )
        if fractions:
            values = [None if value is None else float(value) for value in values]
    try:
        return pl.Series(key, values, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: the types of a key differ within {key!r} ({error}); give it one type") from error


def _kind(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "number"
    return {str: "text", list: "array", dict: "object"}[type(value)]
