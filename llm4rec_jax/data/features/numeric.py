"""Numbers: prices, years, lengths."""

from typing import Literal

import numpy as np
import polars as pl

from llm4rec_jax.data.features.columns import FEATURES, Column, FittedFeature, Rows
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.registry import unknown_name

TRANSFORMS = ("standardise", "log", "quantiles")
EMBEDDINGS = ("linear", "piecewise_linear", "periodic")


@FEATURES.register("numeric")
def numeric(
    rows: Rows,
    *,
    column: str,
    transform: Literal["standardise", "log", "quantiles"] = "standardise",
    embedding: Literal["linear", "piecewise_linear", "periodic"] = "linear",
    bins: int = 8,
    frequencies: int = 16,
    scale: float = 0.5,
) -> FittedFeature:
    """Fits a column of numbers. A missing number has a flag of its own.

    Args:
      rows: The table and its training rows.
      column: The column, of numbers or of text that holds numbers.
      transform: "standardise" subtracts the mean of the training rows and divides by their standard deviation. "log"
        takes sign(x) · log(1 + |x|) before, "quantiles" the share of training values that are lower.
      embedding: How a number becomes a vector: "linear", or "piecewise_linear" or "periodic" as in Gorishniy et al.
        2022 (arXiv 2203.05556).
      bins: Number of bins of "piecewise_linear", between quantiles of the training values.
      frequencies: Number of frequencies of "periodic".
      scale: Standard deviation of the initial frequencies of "periodic".

    Raises:
      ValueError: There is no such transform, embedding or column.
      DataError: A value is no finite number, or the training rows have fewer than two different ones.

    Example:
      >>> table = pl.DataFrame({"item_id": ["a", "b", "c", "d"], "price": [1.0, 3.0, None, 9.0]})
      >>> feature = numeric(Rows(table, np.array([True, True, True, False]), "item"), column="price")
      >>> feature.column.values.tolist()
      [[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [7.0, 0.0]]
    """
    for kind, name, choices in (("transform", transform, TRANSFORMS), ("embedding", embedding, EMBEDDINGS)):
        if name not in choices:
            raise ValueError(unknown_name(f"{kind} of the numeric feature {column!r}", name, choices))
    values = _numbers(rows, column)
    missing = np.isnan(values)
    known = values[rows.trained & ~missing]
    if len(np.unique(known)) < 2:
        raise DataError(
            f"the {rows.name} column {column!r} has fewer than two different numbers in training, which tell nothing; "
            "leave the feature out"
        )
    fitted: dict[str, object] = {"kind": "numeric", "column": column, "transform": transform}
    if transform == "log":
        values = np.sign(values) * np.log1p(np.abs(values))
    elif transform == "quantiles":
        references = np.quantile(known, np.linspace(0, 1, min(len(known), 1000)))
        values = _share_below(values, references)
        fitted["quantiles"] = references.tolist()
    known = values[rows.trained & ~missing]
    mean, deviation = known.mean(), known.std()
    values = np.where(missing, 0.0, (values - mean) / deviation)
    fitted |= {"mean": float(mean), "deviation": float(deviation)}
    options: dict[str, object] = {}
    if embedding == "piecewise_linear":
        edges = np.unique(np.quantile(values[rows.trained & ~missing], np.linspace(0, 1, bins + 1)))
        options["edges"] = tuple(edges.tolist())
        fitted["edges"] = edges.tolist()
    elif embedding == "periodic":
        options |= {"frequencies": frequencies, "scale": scale}
    stacked = np.stack([values, missing], axis=1).astype(np.float32)
    return FittedFeature(Column(stacked, np.ones(len(values), bool)), embedding, options, fitted)


def _numbers(rows: Rows, column: str) -> np.ndarray:
    """Returns a column as float64 [N]; NaN where it is missing."""
    series = rows.column(column)
    if series.dtype == pl.String:
        series = series.str.strip_chars().replace("", None)
    elif not series.dtype.is_numeric() and series.dtype != pl.Boolean:
        raise DataError(
            f"the {rows.name} column {column!r} holds {series.dtype} and no numbers; read it as another kind of "
            "feature, such as 'categorical'"
        )
    values = series.cast(pl.Float64, strict=False)
    wrong = (series.is_not_null() & (values.is_null() | values.is_infinite())).arg_true()
    if len(wrong):
        raise rows.error(
            wrong[0], f"{column} {series[wrong[0]]!r} is no finite number; correct it or leave the cell empty"
        )
    return values.fill_null(np.nan).to_numpy()


def _share_below(values: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Returns the share of the reference quantiles below each value; in the middle where several are equal to it."""
    share = np.linspace(0, 1, len(references))
    lowest = np.interp(values, references, share)
    highest = -np.interp(-values, -references[::-1], -share[::-1])
    return (lowest + highest) / 2
