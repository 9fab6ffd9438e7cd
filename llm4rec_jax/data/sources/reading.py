"""Reading of files into columns of text, with errors that name the file, the line and the remedy."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.registry import unknown_name

# How many names an error message lists before it cuts off.
LISTED = 20

# What Polars raises over a file; its Rust code panics over some damaged ones, with what is no Exception.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException)

_BARE_RETURN = re.compile(rb"\r(?!\n)")
_CONTROL = r"[\x00-\x1f\x7f]"


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
        path: the file, for messages.
        frame: the rows, in file order.
        locate: turns a row index of `frame` into words, such as "line 3".
    """

    path: Path
    frame: pl.DataFrame
    locate: Callable[[int], str]

    def error(self, row: int, problem: str) -> DataError:
        """Returns the error for a problem with one row, given with its remedy."""
        return DataError(f"{self.path}, {self.locate(row)}: {problem}")


def require(path: Path) -> Path:
    """Returns the path.

    Raises:
        FileNotFoundError: if nothing is there; the message lists what the nearest existing folder holds.
    """
    if path.exists():
        return path
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    there = sorted(entry.name for entry in folder.iterdir())
    listed = ", ".join(there[:LISTED]) + (", ..." if len(there) > LISTED else "")
    raise FileNotFoundError(f"{path} does not exist; {folder} holds: {listed or '(nothing)'}. Correct the path")


def read_text(path: Path, encoding: str) -> bytes:
    """Returns a file's content as UTF-8, without byte order mark and without the newlines at its end.

    Raises:
        FileNotFoundError: if the file is missing.
        DataError: if it is empty or holds bytes that are not of that encoding.
    """
    content = require(path).read_bytes()
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        raise DataError(
            f"{path}, line {line}: byte {byte} of the line (0x{content[error.start]:02x}) is not {encoding} text; "
            "convert the file, e.g. `iconv -f latin1 -t utf-8`, or give the option encoding="
        ) from error
    content = text.removeprefix("\ufeff").rstrip("\r\n").encode()
    if not content.strip():
        raise DataError(f"{path} is empty; give a file with data")
    return content


def read_delimited(path: Path, separator: str, *, quoted: bool, encoding: str = "utf-8") -> Table:
    """Reads a delimited file with a header line; all columns are text, and empty fields are null.

    Args:
        path: the file.
        separator: the character between fields.
        quoted: whether double quotes enclose fields, as in CSV, or are ordinary characters.
        encoding: the file's text encoding.

    Raises:
        FileNotFoundError: if the file is missing.
        DataError: if it is empty, not text of that encoding, or a row has more or fewer fields than the header.
    """
    content = read_text(path, encoding)

    def records() -> Iterator[tuple[int, list[str]]]:
        """Yields each record with the number of the line where it starts. Slow: only used to locate errors."""
        mode = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        lines = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline="")
        reader = csv.reader(lines, delimiter=separator, quoting=mode, strict=True)
        start = 1
        try:
            for record in reader:
                yield start, record
                start = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{path}, line {start}: malformed row ({error}); correct its quotes and separators"
            ) from error

    def locate(row: int) -> str:
        # Row 0 of the frame is the record after the header.
        return f"line {next(line for index, (line, _) in enumerate(records()) if index == row + 1)}"

    def check_widths(width: int) -> None:
        for line, record in records():
            if len(record) != width:
                raise DataError(
                    f"{path}, line {line}: malformed row of {len(record)} fields where the header has {width}; "
                    f"correct the row (fields are separated by {separator!r})"
                )

    def check_quotes() -> None:
        lines, found = content.split(b"\n"), [*records(), (content.count(b"\n") + 2, [])]
        for (line, _), (end, _) in pairwise(found):
            if b"\n".join(lines[line - 1 : end - 1]).count(b'"') % 2:
                raise DataError(
                    f"{path}, line {line}: malformed row, a double quote within a field; enclose the field in double "
                    "quotes and write the one within twice"
                )

    _, header = next(records())
    if not header:
        raise DataError(f"{path}, line 1: empty, where the header should be; remove the line")
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise DataError(f"{path}, line 1: column {min(repeated)!r} occurs twice in the header; rename one of them")
    quote = '"' if quoted else None
    try:
        frame = pl.read_csv(content, separator=separator, quote_char=quote, infer_schema=False)
    except UNREADABLE as error:
        check_widths(len(header))
        if quoted:
            check_quotes()
        raise DataError(f"{path}: cannot be parsed ({error}); correct the file") from error
    # Polars closes a quote at the end of the file, drops an empty field there, and reads on after a closing quote.
    if (quoted and b'"' in content) or content.endswith(separator.encode()):
        check_widths(len(header))
        if quoted and content.count(b'"') % 2:
            check_quotes()
    # Polars takes a carriage return for part of a field, the csv module for the end of a row: only text in quotes may
    # have one.
    if bare := _BARE_RETURN.search(content):
        check_widths(len(header))
        if sum(1 for _ in records()) != frame.height + 1:
            line = content.count(b"\n", 0, bare.start()) + 1
            raise DataError(f"{path}, line {line}: a carriage return without a newline; convert the file's line ends")
    # Polars fills up short rows with nulls, which cannot be told from empty last fields without a second look.
    if frame[:, -1].null_count():
        check_widths(len(header))
    if frame.is_empty():
        raise DataError(f"{path} is empty below its header; give a file with data")
    return Table(path, frame, locate)


def read_json_lines(path: Path, *, encoding: str = "utf-8") -> Table:
    """Reads a file of one JSON object a line; columns take the types of the values.

    Raises:
        FileNotFoundError: if the file is missing.
        DataError: if it is empty, not text of that encoding, or a line is no object of matching types.
    """
    content = read_text(path, encoding)
    # Polars skips blank lines.
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    try:
        frame = pl.read_ndjson(content, infer_schema_length=None)
    except UNREADABLE as error:
        for number, line in lines:
            try:
                # As text: of bytes with zeros json guesses another encoding.
                value = json.loads(line.decode())
            except (ValueError, RecursionError) as wrong:
                raise DataError(
                    f"{path}, line {number}: malformed row, not JSON ({wrong}); write one JSON object a line"
                ) from wrong
            if not isinstance(value, dict):
                raise DataError(
                    f"{path}, line {number}: malformed row, not a JSON object; write one JSON object a line"
                ) from error
        raise DataError(f"{path}: the types of a key differ between lines ({error}); give it one type") from error
    return Table(path, frame, lambda row: f"line {lines[row][0]}")


def read_parquet(path: Path) -> Table:
    """Reads a Parquet file; rows are counted from 1 in messages.

    Raises:
        FileNotFoundError: if the file is missing.
        DataError: if it is no Parquet file or has no rows.
    """
    try:
        frame = pl.read_parquet(require(path))
    except UNREADABLE as error:
        raise DataError(
            f"{path} is no Parquet file, or a damaged one ({error}); correct the file or its extension"
        ) from error
    if frame.is_empty():
        raise DataError(f"{path} is empty; give a file with data")
    return Table(path, frame, lambda row: f"row {row + 1}")


def read_table(path: Path, *, encoding: str = "utf-8") -> Table:
    """Reads a file by its extension: .csv, .tsv, .parquet, .jsonl or .ndjson.

    Raises:
        FileNotFoundError: if the file is missing.
        DataError: if the extension is another, or the content is malformed.
    """
    match path.suffix:
        case ".csv":
            return read_delimited(path, ",", quoted=True, encoding=encoding)
        case ".tsv":
            return read_delimited(path, "\t", quoted=True, encoding=encoding)
        case ".jsonl" | ".ndjson":
            return read_json_lines(path, encoding=encoding)
        case ".parquet":
            return read_parquet(path)
    require(path)
    raise DataError(f"{path}: unknown extension {path.suffix!r}; give a .csv, .tsv, .parquet, .jsonl or .ndjson file")


def column(table: Table, name: str) -> pl.Series:
    """Returns a column.

    Raises:
        DataError: if the file has none of that name; the message names the nearest and lists all.
    """
    if name not in table.frame.columns:
        raise DataError(f"{table.path}: {unknown_name('column', name, table.frame.columns)}")
    return table.frame[name]


def ids(table: Table, name: str) -> pl.Series:
    """Returns a column of ids as strings.

    Raises:
        DataError: if the column is missing, holds neither strings nor integers, or an id is empty or has a control
            character.
    """
    series = column(table, name)
    if series.dtype != pl.String and not series.dtype.is_integer():
        raise DataError(f"{table.path}: column {name!r} holds {series.dtype}; cast ids to strings or integers")
    series = series.cast(pl.String)
    row = _first(series.fill_null("").str.strip_chars() == "")
    if row is not None:
        raise table.error(row, f"empty id in column {name!r}; fill it in or remove the row")
    row = _first(series.str.contains(_CONTROL))
    if row is not None:
        raise table.error(row, f"{series[row][:80]!r} in column {name!r} has a control character; correct the id")
    return series


def numbers(table: Table, name: str, limit: float = np.inf) -> NDArray[np.int64] | NDArray[np.float64]:
    """Returns a column of numbers: int64 if all are whole, else float64. Dates become seconds since 1970.

    Raises:
        DataError: if the column is missing, or a value is missing, no number, not finite or, in magnitude, above
            `limit`.
    """
    series = column(table, name)
    if isinstance(series.dtype, (pl.Datetime, pl.Date)):
        series = series.cast(pl.Datetime("us")).dt.timestamp("us") / 1e6
    if series.dtype == pl.String:
        series = series.str.strip_chars()
    elif not series.dtype.is_numeric():
        raise DataError(f"{table.path}: column {name!r} holds {series.dtype}; give numbers")
    floats = series.cast(pl.Float64, strict=False)
    row = _first(floats.is_null())
    if row is not None:
        value = series[row]
        problem = f"{name} {value!r} is not a number" if value else f"{name} is empty"
        raise table.error(row, f"{problem}; correct it or remove the row")
    row = _first(~(floats.is_finite() & (floats.abs() <= limit)))
    if row is not None:
        raise table.error(row, f"{name} {series[row]} is not finite; correct it or remove the row")
    integers = series.cast(pl.Int64, strict=False) if series.dtype == pl.String or series.dtype.is_integer() else None
    if integers is not None and not integers.null_count():
        return integers.to_numpy()
    values = floats.to_numpy()
    # Whole floats below 2^53 are exact, so that "8.8e8" and "880000000" give the same data.
    whole = bool((values == np.floor(values)).all() and (np.abs(values) < 2.0**53).all())
    return values.astype(np.int64) if whole else values


def feature(table: Table, name: str) -> pl.Series:
    """Returns a column as a feature: missing text is the empty string, other types stay as they are.

    Raises:
        DataError: if the column is missing.
    """
    series = column(table, name)
    return series.fill_null("") if series.dtype == pl.String else series


def _first(mask: pl.Series) -> int | None:
    """Returns the index of the first true value."""
    rows = mask.arg_true()
    return rows[0] if len(rows) else None
