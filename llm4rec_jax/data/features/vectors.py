"""Vectors from a file: extracted features of images, sound or text, or trained embeddings of a knowledge graph."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4rec_jax.data.features.columns import FEATURES, Column, FittedFeature, Rows
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.sources.reading import ids as read_ids
from llm4rec_jax.data.sources.reading import read_parquet, require


@FEATURES.register("vectors")
def vectors(
    rows: Rows,
    *,
    path: str,
    key: str | None = None,
    column: str = "vector",
    ids_path: str | None = None,
    first_id: int = 0,
    standardise: bool = True,
    project: str = "linear",
) -> FittedFeature:
    """Reads a vector for each item or user. Rows that the file lacks are masked.

    Args:
      rows: The table and its training rows.
      path: A `.npz` file with arrays "ids" [n] and "vectors" [n, K]; a `.npy` file [n, K]; or a Parquet file.
      key: Column of ids in Parquet; None takes "item_id" or "user_id".
      column: Column of vectors in Parquet, lists or arrays of numbers of one length.
      ids_path: For `.npy`, a text file of the ids, one a line; None takes the row number as the id.
      first_id: Id of the first row of a `.npy` file without ids.
      standardise: Whether each dimension is brought to mean 0 and standard deviation 1 over the training rows.
      project: Name in `PROJECTIONS` of the network that reads the vectors.

    Raises:
      FileNotFoundError: A file is missing.
      DataError: A file is damaged, ids and vectors differ in number, a vector is not finite, or no id is known.
    """
    file = require(Path(path))
    if file.suffix == ".parquet":
        file_ids, values = _from_parquet(file, key or f"{rows.name}_id", column)
    else:
        file_ids, values = _from_numpy(file, ids_path, first_id)
    if values.ndim != 2 or len(values) != len(file_ids):
        raise DataError(f"{file} has vectors of shape {values.shape} for {len(file_ids)} ids; give one vector an id")
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(wrong):
        raise DataError(f"{file}: the vector of {rows.name} {file_ids[wrong[0]]!r} is not finite; correct or drop it")
    if len(set(file_ids)) != len(file_ids):
        twice = next(name for name in file_ids if file_ids.count(name) > 1)
        raise DataError(f"{file}: {rows.name} {twice!r} has two vectors; keep one")
    place = {name: row for row, name in enumerate(file_ids)}
    found = np.array([place.get(name, -1) for name in rows.table[:, 0]])
    present = found >= 0
    if not (present & rows.trained).any():
        raise DataError(
            f"{file} has a vector for no {rows.name} of training; its ids are {', '.join(file_ids[:5])} …, those of "
            f"the data {', '.join(rows.table[:5, 0].to_list())} …: bring them into one form"
        )
    taken = of_rows(values, found)
    fitted = {"kind": "vectors", "rows": int(present.sum()), "width": values.shape[1]}
    return fit_vectors(rows, taken, present, fitted, standardise=standardise, project=project)


def fit_vectors(
    rows: Rows, values: np.ndarray, present: np.ndarray, fitted: dict[str, Any], *, standardise: bool, project: str
) -> FittedFeature:
    """Makes a feature of the vectors of all rows, or of hidden states of several layers.

    Args:
      rows: The table and its training rows.
      values: float32 [N, K], or [N, K, W] for states of K layers; rows that are not present hold zeros.
      present: bool [N], the rows that have a vector.
      fitted: Figures about the vectors, for the run's folder.
      standardise: Whether each dimension is brought to mean 0 and standard deviation 1 over the training rows.
      project: Name in `PROJECTIONS` of the network that reads the vectors; the states of layers have none.
    """
    if standardise:
        known = values[present & rows.trained].astype(np.float64)
        mean, deviation = known.mean(axis=0), known.std(axis=0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        values = np.where(_beside(present, values), (values - mean) / deviation, 0.0).astype(np.float32)
        fitted = fitted | {"mean": mean.tolist(), "deviation": deviation.tolist()}
    if values.ndim == 3:
        return FittedFeature(Column(values, present), "states", {}, fitted)
    return FittedFeature(Column(values, present), "projection", {"project": project}, fitted)


def of_rows(values: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Takes the values of each row.

    Args:
      values: [n, …].
      found: Place of each row in the values, [N]; -1 for none.

    Returns:
      float32 [N, …], zeros for rows without a place.

    Example:
      >>> of_rows(np.array([[1.0], [2.0]]), np.array([1, -1])).tolist()
      [[2.0], [0.0]]
    """
    return np.where(_beside(found >= 0, values), values[found], 0.0).astype(np.float32)


def check_layers(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Checks the option `layers` of a feature that reads hidden states.

    Args:
      layers: Layers of an encoder; 0 stands before its first block, k after block k.
      depth: Number of blocks of the encoder.

    Returns:
      The layers.

    Raises:
      ValueError: There are none, or they don't ascend from 0 to `depth` at most.

    Example:
      >>> check_layers([1, 3, 5], depth=6)
      (1, 3, 5)
    """
    chosen = tuple(layers)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] > depth:
        raise ValueError(
            f"layers is {list(chosen)}, and the encoder has {depth} blocks: give ascending numbers from 0, the state "
            f"before the first block, to {depth}"
        )
    return chosen


def _beside(flags: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns flags [N] in a shape that stands beside values [N, …]."""
    return flags.reshape(-1, *[1] * (values.ndim - 1))


def _from_parquet(file: Path, key: str, column: str) -> tuple[list[str], np.ndarray]:
    table = read_parquet(file)
    for name in (key, column):
        if name not in table.frame.columns:
            raise DataError(f"{file} has no column {name!r} but {', '.join(table.frame.columns)}; name it")
    cells = table.frame[column]
    lengths = cells.list.len() if isinstance(cells.dtype, pl.List) else cells.cast(pl.List(pl.Float32)).list.len()
    wrong = (lengths.is_null() | (lengths != lengths[0])).arg_true()
    if len(wrong):
        raise table.error(wrong[0], f"{column} has {lengths[wrong[0]]} numbers where others have {lengths[0]}")
    values = cells.cast(pl.List(pl.Float32)).explode().to_numpy().reshape(len(cells), -1)
    return read_ids(table, key).to_list(), values


def _from_numpy(file: Path, ids_path: str | None, first_id: int) -> tuple[list[str], np.ndarray]:
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            values, names = loaded, None
        else:
            values, names = loaded["vectors"], loaded["ids"]
        values = values.astype(np.float32)
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise DataError(
            f"{file} is no .npy file of numbers, or .npz file with arrays 'ids' and 'vectors' ({error}); write it by "
            "numpy.save or numpy.savez"
        ) from error
    if names is not None:
        return [str(name).strip() for name in names.tolist()], values
    if ids_path is not None:
        return require(Path(ids_path)).read_text(encoding="utf-8").split(), values
    return [str(first_id + row) for row in range(len(values))], values
