"""Reading of delimited text: CSV, TSV, and files with separators of several characters."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import polars as pl

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.sources.reading import UNREADABLE, Table, read_text

_BARE_RETURN = re.compile(rb"\r(?!\n)")
# Stands for a separator of several characters, which neither Polars nor the csv module takes.
_UNIT_SEPARATOR = "\x1f"


def read_delimited(
    path: Path, separator: str, *, quoted: bool, columns: Sequence[str] | None = None, encoding: str = "utf-8"
) -> Table:
    """Reads a delimited file; all columns are text, and empty fields are null.

    Args:
        path: the file.
        separator: characters between fields, such as "," or "::".
        quoted: whether double quotes enclose fields, as in CSV, or are ordinary characters.
        columns: names of the columns of a file without a header line; None reads them from the first line.
        encoding: text encoding of the file.

    Raises:
        FileNotFoundError: if the file is missing.
        DataError: if it is empty, not text of that encoding, or a row has more or fewer fields than there are columns.
    """
    content = read_text(path, encoding)
    if not separator or "\n" in separator:
        raise ValueError(f"separator {separator!r} cannot part fields: give one or more characters, such as ','")
    shown = separator
    if len(separator.encode()) > 1:
        if quoted:
            raise ValueError(f"quoted fields need a separator of one character, not {separator!r}: give quoted=False")
        if _UNIT_SEPARATOR.encode() in content:
            raise DataError(f"{path} holds the control character \\x1f; remove it, or use another separator")
        content, separator = content.replace(separator.encode(), _UNIT_SEPARATOR.encode()), _UNIT_SEPARATOR
    first_row = 1 if columns is None else 0

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
        return f"line {next(line for index, (line, _) in enumerate(records()) if index == row + first_row)}"

    def check_widths(width: int) -> None:
        whose = "the header has" if columns is None else "there are columns for"
        for line, record in records():
            if len(record) != width:
                raise DataError(
                    f"{path}, line {line}: malformed row of {len(record)} fields where {whose} {width}; "
                    f"correct the row (fields are separated by {shown!r})"
                )

    def check_quotes() -> None:
        lines = content.split(b"\n")
        rows = [*records(), (content.count(b"\n") + 2, [])]
        for (line, _), (end, _) in pairwise(rows):
            if b"\n".join(lines[line - 1 : end - 1]).count(b'"') % 2:
                raise DataError(
                    f"{path}, line {line}: malformed row, a double quote within a field; enclose the field in double "
                    "quotes and write the one within twice, or give quoted=False if quotes are ordinary characters"
                )

    header = list(columns) if columns is not None else next(records())[1]
    if not header:
        raise DataError(f"{path}, line 1: empty, where the header should be; remove the line")
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise DataError(f"{path}, line 1: column {min(repeated)!r} occurs twice in the header; rename one of them")
    if columns is not None:
        check_widths(len(header))
    quote = '"' if quoted else None
    try:
        frame = pl.read_csv(
            content, separator=separator, quote_char=quote, infer_schema=False, has_header=columns is None
        )
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
        if sum(1 for _ in records()) != frame.height + first_row:
            line = content.count(b"\n", 0, bare.start()) + 1
            raise DataError(f"{path}, line {line}: a carriage return without a newline; convert the file's line ends")
    # Polars fills up short rows with nulls, which cannot be told from empty last fields without a second look.
    if frame[:, -1].null_count():
        check_widths(len(header))
    if frame.is_empty():
        raise DataError(f"{path} is empty below its header; give a file with data")
    if columns is not None:
        frame.columns = header
    return Table(path, frame, locate)
