"""Features of items and users other than text and ids, as arrays that a model reads.

A kind of feature is one function in one file of this package. It is fitted to the rows that training knows, and names
the layer that reads its values:

    @FEATURES.register("length")
    def length(rows, *, column):
        lengths = text_of(rows, column).str.len_chars().to_numpy()
        return FittedFeature(Column(values, present), layer="linear", fitted={})
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from llm4rec_jax.data.batching.batch import Array
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.registry import Registry, unknown_name


class Column(NamedTuple):
    """One feature of N items or users.

    Attributes:
      values: float32 [N, K] or int32 [N, K], as the feature's layer reads them.
      present: bool [N]; a row without the feature is masked.
    """

    values: Array
    present: Array


class Columns(NamedTuple):
    """The features of a data set by name.

    Attributes:
      items: Features of all I items, [I, …].
      users: Features of all U users, [U + 1, …]; the last row stands for somebody who is not in the data.
    """

    items: Mapping[str, Column]
    users: Mapping[str, Column]


NO_COLUMNS = Columns({}, {})


@dataclass(frozen=True)
class FittedFeature:
    """A feature fitted to training data.

    Attributes:
      column: The values of all rows.
      layer: Name of the layer that reads them; see `models.items.columns.COLUMN_LAYERS`.
      layer_options: Options of the layer that follow from the data, such as the number of categories.
      fitted: Figures that were learnt from the training rows, for the run's folder; JSON.
    """

    column: Column
    layer: str
    layer_options: Mapping[str, Any] = field(default_factory=dict)
    fitted: Mapping[str, Any] = field(default_factory=dict)


class Rows(NamedTuple):
    """The table that features are made from.

    Attributes:
      table: Rows of all items or users; the first column has their ids.
      trained: bool [N], the rows that training knows. A feature is fitted to these.
      name: "item" or "user", for messages.
    """

    table: pl.DataFrame
    trained: np.ndarray
    name: str

    def column(self, name: str) -> pl.Series:
        """Returns a column of the table.

        Raises:
          ValueError: There is no such column; the message names the nearest.
        """
        if name not in self.table.columns[1:]:
            raise ValueError(unknown_name(f"{self.name} column", name, self.table.columns[1:]))
        return self.table[name]

    def error(self, row: int, problem: str) -> DataError:
        """Returns the error for a problem with one row."""
        return DataError(f"{self.name} {self.table[row, 0]!r}: {problem}")


FEATURES: Registry[Callable[..., FittedFeature]] = Registry("kind of feature")
FROM_FILES = ("vectors", "images")
"""Kinds that read files beside the table, and no column of it."""


def fit(rows: Rows, name: str, options: Mapping[str, Any]) -> FittedFeature:
    """Fits the feature of a name to the rows that training knows.

    Args:
      rows: The table and its training rows.
      name: Name of the feature: that of its column, unless the options say otherwise.
      options: `kind`, a name in `FEATURES`, and the options of that kind. Without `kind`, columns of numbers are
        "numeric" and others "categorical".

    Raises:
      ValueError: There is no such kind, option or column.
      DataError: The values cannot be read, or there are none in training.
    """
    given = {key: value for key, value in options.items() if key != "kind"}
    kind = options.get("kind")
    if kind is None:
        dtype = rows.column(given.get("column", name)).dtype
        kind = "numeric" if dtype.is_numeric() else "categorical"
    if kind not in FROM_FILES:
        given.setdefault("column", name)
    return FEATURES.build(kind, rows, **given)
