"""Data for the pointwise task: will this user, who rated these items before, like that one?"""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import DataError, Dataset, Interactions
from llm4rec_jax.registry import Registry


class Rows(NamedTuple):
    """n questions, each with the history that it may be answered from.

    Attributes:
        user: int32 [n], rows of the user table.
        history: int32 [n, H], rows of the item table, the oldest first; 0 where there is none.
        liked: bool [n, H], whether the user liked them; False where there is none.
        mask: bool [n, H], where there is an item.
        target: int32 [n], rows of the item table.
        label: float32 [n], 1 if the user likes the target, else 0.
    """

    user: NDArray[np.int32]
    history: NDArray[np.int32]
    liked: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    target: NDArray[np.int32]
    label: NDArray[np.float32]

    @property
    def size(self) -> int:
        """The number of questions n; len() of a NamedTuple is its number of columns."""
        return len(self.user)

    def take(self, index: NDArray[np.int64]) -> "Rows":
        """Returns the questions selected by row numbers or by a boolean mask [n]."""
        return Rows._make(column[index] for column in self)


@dataclass(frozen=True, eq=False)
class PointwiseData:
    """Questions to train on, to validate with and to test with.

    Attributes:
        name: what reports call the data.
        items: row i describes item i; the first column is the string "item_id", features follow.
        users: row u describes user u; the first column is the string "user_id", features follow.
        train, validation, test: the questions.
        protocol: one line that states how they were made.

    Raises:
        DataError: on construction, if a part is empty, a column's shape or dtype is not as `Rows` says, a label is
            neither 0 nor 1, or an index is outside the table of users or items.
    """

    name: str
    items: pl.DataFrame
    users: pl.DataFrame
    train: Rows
    validation: Rows
    test: Rows
    protocol: str

    def __post_init__(self) -> None:
        for name, rows in self.parts().items():
            _check(name, rows, self.items.height)
        # The data set checks the tables, and that users and targets are rows of them.
        self._dataset()

    def parts(self) -> dict[str, Rows]:
        """Returns the parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the tables and of all questions, in which part and order they are; not of the name."""
        digest = hashlib.sha256(self._dataset().fingerprint.encode())
        for name, rows in self.parts().items():
            digest.update(f"{name} {rows.history.shape};".encode())
            for column in (rows.history, rows.liked, rows.mask):
                digest.update(column.astype("<i4").tobytes())
        return digest.hexdigest()

    def statistics(self) -> dict[str, int | float]:
        """Returns the sizes of the tables and, for each part, its questions, its users and the share of label 1."""
        figures: dict[str, int | float] = {"users": self.users.height, "items": self.items.height}
        for name, rows in self.parts().items():
            figures[name] = rows.size
            figures[f"{name}_users"] = int(np.unique(rows.user).size)
            figures[f"{name}_liked_share"] = float(rows.label.mean())
        return figures

    def _dataset(self) -> Dataset:
        """Users, targets and labels of all parts as interactions."""
        columns = [(rows.user, rows.target, rows.label) for rows in self.parts().values()]
        interactions = Interactions(*map(np.concatenate, zip(*columns, strict=True)))
        return Dataset(self.name, interactions, self.items, self.users)


# A loader takes its path first, which may have a default, then options of its own as keywords.
POINTWISE: Registry[Callable[..., PointwiseData]] = Registry("pointwise source")


def few_shot(data: PointwiseData, k: int, *, seed: int = 0) -> PointwiseData:
    """Draws k training questions without replacement; validation and test stay.

    Raises:
        ValueError: if k is not positive.
        DataError: if there are fewer than k.
    """
    if k < 1:
        raise ValueError(f"k must be positive, not {k}")
    if k > data.train.size:
        raise DataError(f"few-shot asks for {k} training questions but {data.name} has {data.train.size}; lower k")
    drawn = np.random.default_rng(seed).choice(data.train.size, k, replace=False)
    protocol = f"{data.protocol}; few-shot: {k} training questions drawn with seed {seed}"
    return dataclasses.replace(data, train=data.train.take(drawn), protocol=protocol)


def _check(name: str, rows: Rows, num_items: int) -> None:
    """Raises DataError unless a part is as `Rows` says."""
    if not rows.size:
        raise DataError(f"the {name} part has no questions; give each part some")
    n, wide = rows.size, rows.history.shape[1:]
    shapes = {"history": (n, *wide), "liked": (n, *wide), "mask": (n, *wide)}
    dtypes = {"history": "int32", "liked": "bool", "mask": "bool", "label": "float32"}
    for column, values in rows._asdict().items():
        shape, dtype = shapes.get(column, (n,)), dtypes.get(column, "int32")
        if values.shape != shape or len(wide) != 1 or values.dtype != dtype:
            raise DataError(f"{name}: {column!r} is {values.dtype} {values.shape}; make it {dtype} {shape}")
    wrong = np.flatnonzero((rows.label != 0) & (rows.label != 1))
    if wrong.size:
        raise DataError(f"{name}, row {wrong[0]}: label {rows.label[wrong[0]]} is neither 0 nor 1; binarise the labels")
    outside = np.argwhere((rows.history < 0) | (rows.history >= num_items))
    if outside.size:
        row, place = outside[0]
        raise DataError(
            f"{name}, row {row}: history item {rows.history[row, place]} is outside the item table of {num_items} "
            "rows; add the item to the table"
        )
