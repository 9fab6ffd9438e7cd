"""Damage to files, and a reading of them that owes nothing to the sources: the standard library's, line by line."""

import csv
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llm4rec_jax.data.interactions import Dataset

FIELDS = (
    *("", " ", "nan", "inf", "-1", "1e400", "1e30", "9" * 25, "0x10", "1_0", "3 ", "١", "true", "null", "[1]", "{}"),
    *("\0", '"', '""', "x\ty", "a,b", "../../x", "x" * 5000, "[" * 3000, "é", "\u2028", "T (١٩٩٥)"),
)
BYTES = (b"\xff", b"\x00", b"\n", b"\r", b'"', b"\t", b",", b"\xc3", b"\xef\xbb\xbf", b"{", b"PAR1", b" ")


def mutate(content: bytes, rng: np.random.Generator, separator: bytes | None) -> bytes:
    """One to three random changes; those of fields and lines only where a separator makes the file one of text."""
    for _ in range(rng.integers(1, 4)):
        kinds: list[Callable[..., bytes]] = [_flip, _cut, _delete, _insert]
        if separator is not None:
            kinds += [_field, _field, _field, _lines]
        content = kinds[rng.integers(len(kinds))](content, rng, separator)
    return content


def _flip(content: bytes, rng: np.random.Generator, _: bytes | None) -> bytes:
    if not content:
        return content
    at = int(rng.integers(len(content)))
    return content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :]


def _cut(content: bytes, rng: np.random.Generator, _: bytes | None) -> bytes:
    return content[: rng.integers(len(content) + 1)]


def _delete(content: bytes, rng: np.random.Generator, _: bytes | None) -> bytes:
    at = int(rng.integers(len(content) + 1))
    return content[:at] + content[at + int(rng.integers(1, 12)) :]


def _insert(content: bytes, rng: np.random.Generator, _: bytes | None) -> bytes:
    at = int(rng.integers(len(content) + 1))
    return content[:at] + BYTES[rng.integers(len(BYTES))] + content[at:]


def _field(content: bytes, rng: np.random.Generator, separator: bytes | None) -> bytes:
    lines = content.split(b"\n")
    row = int(rng.integers(len(lines)))
    fields = lines[row].split(separator)
    if fields:
        fields[rng.integers(len(fields))] = FIELDS[rng.integers(len(FIELDS))].encode()
    lines[row] = (separator or b" ").join(fields)
    return b"\n".join(lines)


def _lines(content: bytes, rng: np.random.Generator, _: bytes | None) -> bytes:
    lines = content.split(b"\n")
    at, to = (int(rng.integers(len(lines))) for _ in range(2))
    match int(rng.integers(5)):
        case 0:
            lines.insert(to, lines[at])
        case 1:
            del lines[at]
        case 2:
            lines[at], lines[to] = lines[to], lines[at]
        case 3:
            lines.insert(at, b"")
        case _:
            lines = [line + b"\r" for line in lines]
    return b"\n".join(lines)


def rows(dataset: Dataset) -> list[tuple[Any, ...]]:
    """Interactions as (user id, item id, rating, timestamp), None where the data has no such column."""
    data = dataset.interactions
    users, items = dataset.users["user_id"].to_list(), dataset.items["item_id"].to_list()
    none = [None] * len(data)
    ratings = none if data.rating is None else data.rating.tolist()
    times = none if data.timestamp is None else data.timestamp.tolist()
    return [
        (users[user], items[item], rating, time)
        for user, item, rating, time in zip(data.user, data.item, ratings, times, strict=True)
    ]


def text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")


def delimited(path: Path, separator: str, quoted: bool) -> list[dict[str, str]]:
    """Rows by the csv module, by column name."""
    mode = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    header, *records = csv.reader(
        io.StringIO(text_of(path), newline=""), delimiter=separator, quoting=mode, strict=True
    )
    return [dict(zip(header, record, strict=True)) for record in records]


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_of(path).split("\n") if line.strip()]


def parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def sequences(path: Path) -> list[tuple[Any, ...]]:
    """Lines of a user and items, as `rows` has them; what parts words is Unicode's white space."""
    words = [re.findall(r"[^\s\x1c-\x1f]+|[\x1c-\x1f]+", line) for line in text_of(path).split("\n")]
    return [(user, item, None, float(at)) for user, *items in words for at, item in enumerate(items)]


def plain(
    records: list[dict[str, Any]],
    user: str = "user_id",
    item: str = "item_id",
    rating: str = "rating",
    time: str = "timestamp",
) -> list[tuple[Any, ...]]:
    """Records as `rows` has them; None in place of a column that there is not."""

    def number(value: Any, single: bool) -> Any:
        value = float(value)
        assert math.isfinite(value)
        return float(np.float32(value)) if single else value

    return [
        (
            str(record[user]).strip(),
            str(record[item]).strip(),
            number(record[rating], True) if rating in record else None,
            number(record[time], False) if time in record else None,
        )
        for record in records
    ]
