"""Reading of files into columns of text, with errors that name the file, the line and the remedy."""

import gzip
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.registry import unknown_name

# Number of names that an error message lists.
LISTED = 20

# Errors of Polars over a file. Its Rust code panics over some damaged ones, with a BaseException.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException)

_CONTROL = r"[\x00-\x1f\x7f]"
_ISO_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TOO_FINE = re.compile(r"\.[0-9]{7,}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Whole floats below this are exact.
_EXACT = 2.0**53


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

    Files that end in .gz or .zst are decompressed.

    Raises:
        FileNotFoundError: if the file is missing.
        DataError: if it is empty, damaged, or holds bytes that are not of that encoding.
        ValueError: if there is no such encoding.
    """
    try:
        "".encode(encoding)
    except LookupError:
        raise ValueError(
            f"unknown encoding {encoding!r}: give one that Python knows, such as 'utf-8' or 'latin-1'"
        ) from None
    content = _decompressed(require(path))
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


def _decompressed(path: Path) -> bytes:
    match path.suffix.lower():
        case ".gz":
            try:
                return gzip.decompress(path.read_bytes())
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{path} is a damaged gzip file ({error}); fetch it again") from error
        case ".zst":
            try:
                # Polars decompresses what it reads; lines are taken as they are.
                return "\n".join(pl.read_lines(path)["line"].fill_null("")).encode()
            except (*UNREADABLE, OSError) as error:
                raise DataError(
                    f"{path} is a damaged zstd file, or not UTF-8 text ({error}); decompress it with `unzstd`"
                ) from error
    return path.read_bytes()


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


def column(table: Table, name: str) -> pl.Series:
    """Returns a column.

    Raises:
        DataError: if the file has none of that name; the message names the nearest and lists all.
    """
    names = table.frame.columns
    if name not in names:
        # Numbers are rarely names: the first row was taken for a header.
        remedy = "; if the file has no header line, give the option columns" if any(map(str.isdigit, names)) else ""
        raise DataError(f"{table.path}: {unknown_name('column', name, names)}{remedy}")
    return table.frame[name]


def ids(table: Table, name: str) -> pl.Series:
    """Returns a column of ids as strings, without surrounding white space.

    Raises:
        DataError: if the column is missing, holds neither strings nor integers, an id is empty or has a control
            character, or one id is written in two ways ("48" and "48.0").
    """
    series = _decoded(column(table, name))
    if series.dtype != pl.String and not series.dtype.is_integer():
        raise DataError(f"{table.path}: column {name!r} holds {series.dtype}; cast ids to strings or integers")
    series = series.cast(pl.String).str.strip_chars()
    row = _first(series.fill_null("") == "")
    if row is not None:
        raise table.error(row, f"empty id in column {name!r}; fill it in or remove the row")
    row = _first(series.str.contains(_CONTROL))
    if row is not None:
        raise table.error(row, f"{series[row][:80]!r} in column {name!r} has a control character; correct the id")
    whole = series.str.strip_suffix(".0")
    row = _first((whole != series) & whole.is_in(series.unique().implode()))
    if row is not None:
        raise table.error(
            row, f"id {series[row]!r} stands beside {whole[row]!r} in column {name!r}; write ids as whole numbers"
        )
    return series


def numbers(
    table: Table, name: str, limit: float = np.inf, *, dates: bool = False
) -> NDArray[np.int64] | NDArray[np.float64]:
    """Returns a column of numbers: int64 if all are whole, else float64.

    Dates become seconds since 1970, or nanoseconds where seconds would make different times equal.

    Args:
        table: the rows.
        name: the column.
        limit: largest magnitude of a value.
        dates: whether text may be ISO dates, such as 2017-07-23 or 2017-07-23T02:40:00Z.

    Raises:
        DataError: if the column is missing, or a value is missing, no number, not finite, in magnitude above `limit`,
            or a whole number that a float beside it cannot hold.
    """
    series = column(table, name)
    if series.dtype == pl.String:
        series = series.str.strip_chars()
        if dates and series.drop_nulls().head(1).str.contains(_ISO_DATE).any():
            series = _iso_dates(table, name, series)
    elif series.dtype.is_decimal():
        series = series.cast(pl.String).str.replace(r"\.0+$", "")
    if isinstance(series.dtype, (pl.Datetime, pl.Date)):
        moments = series.cast(pl.Datetime("ns")).dt.timestamp("ns")
        seconds = series.cast(pl.Datetime("us")).dt.timestamp("us") / 1e6
        series = seconds if seconds.n_unique() == moments.n_unique() else moments
    if series.dtype != pl.String and not series.dtype.is_numeric():
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
    whole = bool((values == np.floor(values)).all() and (np.abs(values) < _EXACT).all())
    if integers is not None and not whole:
        is_integer = series.cast(pl.String).str.contains(r"^[+-]?[0-9]+$")
        row = _first(is_integer & (floats.abs() >= _EXACT))
        if row is not None:
            raise table.error(
                row, f"{name} {series[row]} has more digits than a float holds; give whole numbers below 2^63 only"
            )
    return values.astype(np.int64) if whole else values


def _iso_dates(table: Table, name: str, series: pl.Series) -> pl.Series:
    """Parses ISO dates; a time without a zone is UTC.

    Raises:
        DataError: if a value is no ISO date, or has more than six digits of a second.
    """
    moments: dict[str | None, int | None] = {None: None}
    for text in series.unique().drop_nulls():
        try:
            if _TOO_FINE.search(text):
                raise ValueError("more than six digits of a second")
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            row = (series == text).arg_true()[0]
            raise table.error(
                row,
                f"{name} {text!r} is neither a number nor an ISO date ({error}); write dates as 2017-07-23T02:40:00",
            ) from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        moments[text] = (moment - _EPOCH) // timedelta(microseconds=1)
    return pl.Series(name, [moments[text] for text in series], pl.Int64).cast(pl.Datetime("us"))


def feature(table: Table, name: str) -> pl.Series:
    """Returns a column as a feature: missing text is the empty string, other types stay as they are.

    Binary columns that hold UTF-8 text, as Hive and old Spark write strings into Parquet, become text.

    Raises:
        DataError: if the column is missing.
    """
    series = _decoded(column(table, name))
    return series.fill_null("") if series.dtype == pl.String else series


def _decoded(series: pl.Series) -> pl.Series:
    """Returns a binary column of UTF-8 text as text, and any other column as it is."""
    if series.dtype != pl.Binary:
        return series
    try:
        return series.cast(pl.String)
    except pl.exceptions.ComputeError:  # not UTF-8: pictures, say
        return series


def _first(mask: pl.Series) -> int | None:
    """Returns the index of the first true value."""
    rows = mask.arg_true()
    return rows[0] if len(rows) else None
