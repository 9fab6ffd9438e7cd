"""Labelled examples for the rating task: whether a user, given the items rated before, likes a target item."""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import PARTS, DataError, Dataset, Interactions
from llm4rec_jax.registry import Registry


class LabeledExamples(NamedTuple):
    """n examples (user, history, target) with the label whether the user likes the target.

    Attributes:
        user: int32 [n], rows of the user table.
        history: int32 [n, H], rows of the item table, the oldest first; 0 where `mask` is False.
        liked: bool [n, H], whether the user liked the items of the history; False where `mask` is False.
        mask: bool [n, H], where the history has an item.
        target: int32 [n], rows of the item table.
        label: float32 [n], 1 if the user likes the target, else 0.
        impression: int32 [n], the list of items shown together that the target was in, or None.
    """

    user: NDArray[np.int32]
    history: NDArray[np.int32]
    liked: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    target: NDArray[np.int32]
    label: NDArray[np.float32]
    impression: NDArray[np.int32] | None = None

    @property
    def size(self) -> int:
        """Number of examples n; len() of a NamedTuple is its number of columns."""
        return len(self.user)

    def take(self, index: NDArray[np.int64]) -> "LabeledExamples":
        """Returns the examples selected by row numbers or by a boolean mask [n]."""
        return LabeledExamples._make(None if column is None else column[index] for column in self)


@dataclass(frozen=True, eq=False)
class LabeledData:
    """Labelled examples for training, validation and test.

    Attributes:
        name: the data set's name in reports.
        items: row i describes item i; the first column is the string "item_id", features follow.
        users: row u describes user u; the first column is the string "user_id", features follow.
        train, validation, test: the examples.
        protocol: one line that states how the examples were made.

    Raises:
        DataError: on construction, if a part is empty, a column's shape or dtype differs from `LabeledExamples`, a
            label is neither 0 nor 1, or an index is outside the table of users or items.
    """

    name: str
    items: pl.DataFrame
    users: pl.DataFrame
    train: LabeledExamples
    validation: LabeledExamples
    test: LabeledExamples
    protocol: str

    def __post_init__(self) -> None:
        for name, rows in self.parts().items():
            _check(name, rows, self.items.height)
        # The data set checks the tables, and that users and targets are rows of them.
        self._dataset()

    def parts(self) -> dict[str, LabeledExamples]:
        """Returns the parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the tables and of the examples in their parts and order; the name does not count."""
        digest = hashlib.sha256(self._dataset().fingerprint.encode())
        for name, rows in self.parts().items():
            digest.update(f"{name} {rows.history.shape};".encode())
            for column in (rows.history, rows.liked, rows.mask, rows.impression):
                if column is not None:
                    digest.update(column.astype("<i4").tobytes())
        return digest.hexdigest()

    def statistics(self) -> dict[str, int | float]:
        """Returns the sizes of the tables and, for each part, its examples, its users and the share of label 1."""
        figures: dict[str, int | float] = {"users": self.users.height, "items": self.items.height}
        for name, rows in self.parts().items():
            figures[name] = rows.size
            figures[f"{name}_users"] = int(np.unique(rows.user).size)
            figures[f"{name}_liked_share"] = float(rows.label.mean())
        return figures

    def _dataset(self) -> Dataset:
        """Returns users, targets and labels of all parts as interactions."""
        columns = [(rows.user, rows.target, rows.label) for rows in self.parts().values()]
        interactions = Interactions(*map(np.concatenate, zip(*columns, strict=True)))
        return Dataset(self.name, interactions, self.items, self.users)


# A loader takes its path first, which may have a default, then options of its own as keywords.
LABELED_SOURCES: Registry[Callable[..., LabeledData]] = Registry("labelled source")


def label_examples(
    dataset: Dataset, *, threshold: float | None = None, history: int = 10, min_history: int = 1
) -> LabeledData:
    """Makes examples of the rating task from rated interactions.

    Every interaction with at least `min_history` earlier ones of its user is an example. Order is by time, ties by
    input order; by input order alone where there are no timestamps. Parts are those that came with the data, else the
    last tenth of all interactions tests, and the tenth before validates.

    Args:
        dataset: interactions with ratings.
        threshold: the rating from which an item is liked; None takes ratings of 0 and 1 as labels.
        history: length of the longest history H.
        min_history: length of the shortest history.

    Raises:
        ValueError: if the lengths are not sensible.
        DataError: if there are no ratings, a label is neither 0 nor 1, or a part has no example.
    """
    if not 0 <= min_history <= history or history < 1:
        raise ValueError(f"history={history} must be at least 1 and min_history={min_history} between 0 and it")
    data = dataset.interactions
    if data.rating is None:
        raise DataError(f"data set {dataset.name!r} has no ratings to learn from; name its label column")
    liked = data.rating >= (0.5 if threshold is None else threshold)
    wrong = np.flatnonzero((data.rating != 0) & (data.rating != 1)) if threshold is None else []
    if len(wrong):
        raise DataError(
            f"interactions, row {wrong[0]}: label {data.rating[wrong[0]]:g} is neither 0 nor 1; give threshold, the "
            "rating from which an item is liked"
        )
    time = np.arange(len(data)) if data.timestamp is None else data.timestamp
    order = np.lexsort((np.arange(len(data)), time, data.user))
    begins = np.searchsorted(data.user[order], data.user[order])
    # Rows of one user at 5…8: the example at 8 with H = 2 has the history 6, 7.
    ends = np.flatnonzero(np.arange(len(order)) - begins >= min_history)
    width = np.minimum(ends - begins[ends], history)
    column = np.arange(history)
    mask = column < width[:, None]
    at = order[np.where(mask, (ends - width)[:, None] + column, 0)]
    examples = LabeledExamples(
        user=data.user[order[ends]],
        history=np.where(mask, data.item[at], 0).astype(np.int32),
        liked=liked[at] & mask,
        mask=mask,
        target=data.item[order[ends]],
        label=liked[order[ends]].astype(np.float32),
    )
    if data.part is not None:
        part, how = data.part, "parts as given with the data"
    else:
        rank = np.argsort(np.lexsort((np.arange(len(data)), time)))
        part = np.digitize(rank / len(data), (0.8, 0.9)).astype(np.int8)
        how = f"cut at .8 and .9 of all interactions by {'input order' if data.timestamp is None else 'time'}"
    parts = {name: examples.take(np.flatnonzero(part[order[ends]] == i)) for i, name in enumerate(PARTS)}
    from_rating = "labels as given" if threshold is None else f"liked from rating {threshold:g}"
    return LabeledData(
        dataset.name,
        dataset.items,
        dataset.users,
        **parts,
        protocol=f"labelled rows: each with {min_history} or more earlier ones of its user, at most {history} as "
        f"history; {from_rating}; {how}",
    )


def few_shot(data: LabeledData, k: int, *, seed: int = 0) -> LabeledData:
    """Draws k training examples without replacement; validation and test stay.

    Raises:
        ValueError: if k is not positive.
        DataError: if there are fewer than k.
    """
    if k < 1:
        raise ValueError(f"k must be positive, not {k}")
    if k > data.train.size:
        raise DataError(f"few-shot asks for {k} training examples but {data.name} has {data.train.size}; lower k")
    drawn = np.random.default_rng(seed).choice(data.train.size, k, replace=False)
    protocol = f"{data.protocol}; few-shot: {k} training questions drawn with seed {seed}"
    return dataclasses.replace(data, train=data.train.take(drawn), protocol=protocol)


def _check(name: str, rows: LabeledExamples, num_items: int) -> None:
    """Raises DataError unless a part has the shapes, dtypes and ranges of `LabeledExamples`."""
    if not rows.size:
        raise DataError(f"the {name} part has no examples; give each part some")
    n, width = rows.size, rows.history.shape[1:]
    shapes = {"history": (n, *width), "liked": (n, *width), "mask": (n, *width)}
    dtypes = {"history": "int32", "liked": "bool", "mask": "bool", "label": "float32"}
    for column, values in rows._asdict().items():
        if values is None:
            continue
        shape, dtype = shapes.get(column, (n,)), dtypes.get(column, "int32")
        if values.shape != shape or len(width) != 1 or values.dtype != dtype:
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
