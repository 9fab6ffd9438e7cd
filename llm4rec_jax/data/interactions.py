"""The in-memory form of a recommendation data set."""

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

PARTS = ("train", "validation", "test")
"""Parts of a split, by their numbers in `Interactions.part`."""


class DataError(ValueError):
    """Data that cannot be used. The message says what is wrong, where, and how to mend it."""


@dataclass(frozen=True, eq=False)
class Interactions:
    """Columns of E interactions, in input order.

    Attributes:
        user: int32 [E], row of the user table.
        item: int32 [E], row of the item table.
        rating: float32 [E], in the source's scale, or None where the source has none.
        timestamp: int64 or float64 [E], in the source's unit (seconds for MovieLens), or None.
        part: int8 [E], the part of a split that came with the data, an index of `PARTS`, or None.

    Raises:
        DataError: on construction, if a column's shape or dtype differs from the above.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    rating: NDArray[np.float32] | None = None
    timestamp: NDArray[np.int64] | NDArray[np.float64] | None = None
    part: NDArray[np.int8] | None = None

    def __post_init__(self) -> None:
        allowed = {
            "user": ("int32",),
            "item": ("int32",),
            "rating": ("float32",),
            "timestamp": ("int64", "float64"),
            "part": ("int8",),
        }
        for name, column in self.columns().items():
            if column.shape != self.user.shape or column.ndim != 1:
                raise DataError(
                    f"interactions: column {name!r} has shape {column.shape} but 'user' has {self.user.shape}; "
                    "give columns of one length"
                )
            if str(column.dtype) not in allowed[name]:
                raise DataError(
                    f"interactions: column {name!r} has dtype {column.dtype}; "
                    f"convert it to {' or '.join(allowed[name])}"
                )

    def __len__(self) -> int:
        return len(self.user)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Returns the columns that exist, by name."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in columns.items() if column is not None}

    def take(self, index: NDArray[Any]) -> "Interactions":
        """Returns the interactions selected by row numbers or by a boolean mask [E]."""
        return Interactions(**{name: column[index] for name, column in self.columns().items()})


@dataclass(frozen=True, eq=False)
class Dataset:
    """Interactions with the tables of users and items that they refer to.

    Attributes:
        name: name of the data in reports.
        interactions: the interactions, not empty.
        items: row i describes item i; the first column is the string "item_id", features follow.
        users: row u describes user u; the first column is the string "user_id", features follow.

    Raises:
        DataError: on construction, if an id is empty or repeated, an index is out of range, a rating or timestamp is
            not finite, or there is no interaction.
    """

    name: str
    interactions: Interactions
    items: pl.DataFrame
    users: pl.DataFrame

    def __post_init__(self) -> None:
        _check_table(self.items, "item")
        _check_table(self.users, "user")
        data = self.interactions
        if not len(data):
            raise DataError(f"data set {self.name!r} has no interactions; check the source and its filters")
        for name, column, size in (("user", data.user, self.num_users), ("item", data.item, self.num_items)):
            outside = np.flatnonzero((column < 0) | (column >= size))
            if outside.size:
                row = int(outside[0])
                raise DataError(
                    f"interactions, row {row}: {name} {column[row]} is outside the {name} table of {size} rows; "
                    f"add the {name} to the table or drop the interaction"
                )
        for name, column in (("rating", data.rating), ("timestamp", data.timestamp)):
            if column is None:
                continue
            wrong = np.flatnonzero(~np.isfinite(column))
            if wrong.size:
                row = int(wrong[0])
                raise DataError(
                    f"interactions, row {row}: {name} {column[row]} is not finite; correct or drop the interaction"
                )

    @property
    def num_users(self) -> int:
        return self.users.height

    @property
    def num_items(self) -> int:
        return self.items.height

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all cells, dtypes and column names.

        It depends neither on the data set's name nor on where or how the data is stored.
        """
        digest = hashlib.sha256()
        for name, column in self.interactions.columns().items():
            digest.update(f"{name} {column.dtype} {len(column)};".encode())
            digest.update(_little_endian(column))
        for title, table in (("items", self.items), ("users", self.users)):
            digest.update(f"{title} {table.height};".encode())
            for series in table:
                digest.update(f"{len(series.name)} {series.name};".encode())
                _hash_series(digest, series)
        return digest.hexdigest()

    def statistics(self) -> dict[str, int | float]:
        """Returns counts and summary figures; ratings and times are left out where the data has none."""
        data = self.interactions
        per_user = np.bincount(data.user, minlength=self.num_users)
        per_item = np.bincount(data.item, minlength=self.num_items)
        figures: dict[str, int | float] = {
            "users": self.num_users,
            "items": self.num_items,
            "interactions": len(data),
            "density": len(data) / (self.num_users * self.num_items),
        }
        for name, counts in (("user", per_user), ("item", per_item)):
            figures[f"interactions_per_{name}_min"] = int(counts.min())
            figures[f"interactions_per_{name}_median"] = float(np.median(counts))
            figures[f"interactions_per_{name}_mean"] = float(counts.mean())
            figures[f"interactions_per_{name}_max"] = int(counts.max())
        figures["users_without_interactions"] = int((per_user == 0).sum())
        figures["items_without_interactions"] = int((per_item == 0).sum())
        if data.rating is not None:
            figures["rating_min"] = float(data.rating.min())
            figures["rating_mean"] = float(data.rating.mean(dtype=np.float64))
            figures["rating_max"] = float(data.rating.max())
        if data.timestamp is not None:
            figures["timestamp_first"] = data.timestamp.min().item()
            figures["timestamp_last"] = data.timestamp.max().item()
        return figures


def format_statistics(figures: dict[str, int | float]) -> str:
    """Formats figures as aligned lines `name  value` for printing."""
    width = max(map(len, figures))
    lines = []
    for name, value in figures.items():
        # Times have too many digits for the general format, and separators would make them unreadable.
        if name.startswith("timestamp"):
            text = str(value)
        else:
            text = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
        lines.append(f"{name.replace('_', ' '):<{width}}  {text}")
    return "\n".join(lines)


def _check_table(table: pl.DataFrame, kind: str) -> None:
    """Raises DataError unless the table's first column holds distinct, non-empty string ids."""
    key = f"{kind}_id"
    if table.columns[:1] != [key] or table.schema[key] != pl.String:
        raise DataError(
            f"the {kind} table's first column must be the string column {key!r}, but its columns are {table.schema}; "
            "rename or cast the id column"
        )
    ids = table[key]
    empty = (ids.fill_null("").str.strip_chars() == "").arg_true()
    if len(empty):
        raise DataError(f"{kind} table, row {empty[0]}: empty {key}; give each {kind} an id or drop the row")
    repeated = (~ids.is_first_distinct()).arg_true()
    if len(repeated):
        row = repeated[0]
        first = (ids == ids[row]).arg_true()[0]
        raise DataError(
            f"{kind} table: {key} {ids[row]!r} stands in row {first} and again in row {row}; keep one of the rows"
        )


def _little_endian(column: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(column).astype(column.dtype.newbyteorder("<"), copy=False).tobytes()


def _hash_series(digest: "hashlib._Hash", series: pl.Series) -> None:
    """Adds a column's dtype and cells. Lengths and nulls go in first, so different columns give different bytes."""
    dtype = series.dtype
    digest.update(f"{dtype} {len(series)};".encode())
    digest.update(np.packbits(series.is_null().to_numpy()).tobytes())
    if isinstance(dtype, pl.Array):
        _hash_series(digest, series.arr.to_list())
    elif isinstance(dtype, pl.List):
        digest.update(_little_endian(series.list.len().fill_null(0).cast(pl.Int64).to_numpy()))
        _hash_series(digest, series.drop_nulls().explode().rename(""))
    elif isinstance(dtype, pl.Struct):
        for field in series.struct.fields:
            digest.update(f"{len(field)} {field};".encode())
            _hash_series(digest, series.struct.field(field))
    elif dtype.is_numeric() or dtype == pl.Boolean or dtype.is_temporal():
        physical = series.to_physical()
        digest.update(_little_endian(physical.fill_null(False if dtype == pl.Boolean else 0).to_numpy()))
    elif dtype != pl.Null:
        text = series.cast(pl.String).fill_null("")
        digest.update(_little_endian(text.str.len_bytes().cast(pl.Int64).to_numpy()))
        digest.update("".join(text.to_list()).encode())
