"""Categories: one value a row, as a brand, or several, as genres."""

from collections import Counter

import numpy as np
import polars as pl

from llm4rec_jax.data.features.columns import FEATURES, Column, FittedFeature, Rows
from llm4rec_jax.data.interactions import DataError


@FEATURES.register("categorical")
def categorical(rows: Rows, *, column: str, separator: str | None = None, min_count: int = 1) -> FittedFeature:
    """Fits a column of categories. Values that training does not have share a row of the table of vectors.

    Args:
      rows: The table and its training rows.
      column: The column: text, whole numbers, or lists of these.
      separator: Text between several values in one cell, such as ", "; None takes the whole cell as one value.
      min_count: Number of training rows that a value needs for a vector of its own.

    Raises:
      ValueError: There is no such column.
      DataError: The column holds neither text nor whole numbers, or training has no value with enough rows.

    Example:
      >>> table = pl.DataFrame({"item_id": ["a", "b", "c"], "genres": ["Crime, Drama", "", "Drama, Western"]})
      >>> rows = Rows(table, np.array([True, True, False]), "item")
      >>> feature = categorical(rows, column="genres", separator=", ")
      >>> feature.fitted["values"], feature.column.values.tolist(), feature.column.present.tolist()
      (['Crime', 'Drama'], [[1, 2], [-1, -1], [2, 0]], [True, False, True])
    """
    cells = _cells(rows, column, separator)
    counts = Counter(value for cell, trained in zip(cells, rows.trained, strict=True) if trained for value in cell)
    known = sorted(value for value, count in counts.items() if count >= min_count)
    if not known:
        raise DataError(
            f"the {rows.name} column {column!r} has no value in {min_count} or more training rows; lower min_count or "
            "leave the feature out"
        )
    # Row 0 is that of values which training does not have.
    row_of = {value: row for row, value in enumerate(known, 1)}
    widest = max(map(len, cells))
    values = np.full((len(cells), max(widest, 1)), -1, np.int32)
    for row, cell in enumerate(cells):
        values[row, : len(cell)] = [row_of.get(value, 0) for value in cell]
    fitted = {"kind": "categorical", "column": column, "values": known}
    return FittedFeature(Column(values, values[:, 0] >= 0), "bag", {"size": len(known) + 1}, fitted)


def _cells(rows: Rows, column: str, separator: str | None) -> list[list[str]]:
    """Returns the distinct values of each row, in their order."""
    series = rows.column(column)
    inner = series.dtype.inner if isinstance(series.dtype, (pl.List, pl.Array)) else series.dtype
    if inner != pl.String and not inner.is_integer() and inner not in (pl.Boolean, pl.Null):
        raise DataError(
            f"the {rows.name} column {column!r} holds {series.dtype} and no categories; read it as another kind of "
            "feature, such as 'numeric'"
        )
    cells = []
    for cell in series.to_list():
        if separator is not None and isinstance(cell, str):
            cell = cell.split(separator)
        words = cell if isinstance(cell, list) else [cell]
        stripped = (str(word).strip() for word in words if word is not None)
        cells.append(list(dict.fromkeys(word for word in stripped if word)))
    return cells
