"""Joining of parsed tables into a `Dataset`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import DataError, Dataset, Interactions
from llm4rec_jax.data.sources.reading import Table, feature, ids, numbers


@dataclass(frozen=True)
class Catalogue:
    """The table of all users or all items.

    Attributes:
        frame: the id column, then the features.
        path: where it was read, or None if it was made from the interactions.
    """

    frame: pl.DataFrame
    path: Path | None


def catalogue(table: Table, kind: str, key: str, features: Mapping[str, str] | None = None) -> Catalogue:
    """Makes the table of users or items from a file with a row for each.

    Args:
        table: the rows.
        kind: "user" or "item".
        key: the file's id column.
        features: file column by feature name; all other columns under their own names if None.

    Raises:
        DataError: if a column is missing, an id is empty or repeated, or a feature is called as the id.
    """
    keys = ids(table, key)
    repeated = (~keys.is_first_distinct()).arg_true()
    if len(repeated):
        row = repeated[0]
        first = (keys == keys[row]).arg_true()[0]
        raise table.error(row, f"duplicate {kind} id {keys[row]!r}, first in {table.locate(first)}; keep one of them")
    return Catalogue(_with_features(table, kind, key, keys, features), table.path)


def observed(table: Table, kind: str, key: str, features: Mapping[str, str] | None = None) -> Catalogue:
    """Makes the table of users or items from the interactions, in order of first appearance.

    Args:
        table: the interactions.
        kind: "user" or "item".
        key: the file's id column.
        features: file column by feature name; a feature's value is that of the first appearance.

    Raises:
        DataError: if a column is missing, or an id is empty.
    """
    keys = ids(table, key)
    frame = _with_features(table, kind, key, keys, features or {})
    return Catalogue(frame.filter(keys.is_first_distinct()), None)


def assemble(
    name: str,
    table: Table,
    users: Catalogue,
    items: Catalogue,
    *,
    user: str,
    item: str,
    rating: str | None,
    timestamp: str | None,
) -> Dataset:
    """Makes a data set from rows of interactions; the last four arguments name their columns.

    Raises:
        DataError: if a column is missing, a number is unusable, or a catalogue lacks a user or item.
    """
    ratings = None if rating is None else numbers(table, rating, limit=float(np.finfo(np.float32).max))
    interactions = Interactions(
        _rows(table, user, "user", users),
        _rows(table, item, "item", items),
        None if ratings is None else ratings.astype(np.float32),
        None if timestamp is None else numbers(table, timestamp, dates=True),
    )
    return Dataset(name, interactions, items.frame, users.frame)


def _with_features(
    table: Table, kind: str, key: str, keys: pl.Series, features: Mapping[str, str] | None
) -> pl.DataFrame:
    if features is None:
        features = {column: column for column in table.frame.columns if column != key}
    if f"{kind}_id" in features:
        raise DataError(f"{table.path}: a feature is called {kind}_id, the name of the id column; rename it")
    columns = [feature(table, column).alias(feature_name) for feature_name, column in features.items()]
    return pl.DataFrame([keys.alias(f"{kind}_id"), *columns])


def _rows(table: Table, column: str, kind: str, known: Catalogue) -> NDArray[np.int32]:
    """Returns the catalogue's row for each interaction, int32 [E]."""
    keys = ids(table, column).alias("key")
    index = known.frame.select(pl.col(f"{kind}_id").alias("key")).with_row_index("row")
    rows = keys.to_frame().join(index, on="key", how="left", maintain_order="left")["row"]
    missing = rows.is_null().arg_true()
    if len(missing):
        row = missing[0]
        twin = keys[row].removesuffix(".0") if keys[row].endswith(".0") else f"{keys[row]}.0"
        remedy = f"add the {kind} there or remove the interactions"
        if twin in known.frame[f"{kind}_id"]:
            remedy = f"{twin!r} is, so write the ids of both files as whole numbers"
        raise table.error(row, f"{kind} {keys[row]!r} is not in {known.path} ({len(missing)} such rows); {remedy}")
    return rows.cast(pl.Int32).to_numpy()
