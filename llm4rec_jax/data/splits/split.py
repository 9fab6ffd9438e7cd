"""A split: which interactions train, validate and test, and the sequences that it gives."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import DataError, Dataset

Order = Literal["time", "input"]
Phase = Literal["validation", "test"]


class Sequences(NamedTuple):
    """Interactions of U users in order of time, one user after the other.

    Attributes:
        offsets: int64 [U + 1]; user u has the entries from offsets[u] to offsets[u + 1].
        items: int32 [n], rows of the item table.
        ratings: float32 [n], or None where the data has none.
        timestamps: int64 or float64 [n], or None where the data has none.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    ratings: NDArray[np.float32] | None
    timestamps: NDArray[np.int64] | NDArray[np.float64] | None

    def of(self, user: int) -> NDArray[np.int32]:
        """Returns a view of the items of one user."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


@dataclass(frozen=True, eq=False)
class Split:
    """The role of each interaction, in training, validation or test, and the items that are ranked.

    Attributes:
        dataset: the data, with E interactions, U users and I items.
        train: int64 rows of the interactions, ordered by user, time and input order.
        validation: as `train`; may be empty.
        test: as `train`.
        targets: bool [len(train)], the training interactions that are predicted in training; the others only occur in
            histories.
        known: bool [I], the items that exist at training time and so may be drawn as negatives.
        validation_candidates: bool [I], the items ranked in validation.
        test_candidates: bool [I], the items ranked in the test.
        protocol: one line that states the procedure, its parameters and its seed.
        order: whether `time` is the timestamp or the position in the input.
        validation_in_history: whether test histories hold the validation interactions.

    Raises:
        DataError: on construction, if train or test is empty, an interaction has two roles (so that a history could
            hold a target), rows are out of order, a target is no candidate, or an item is trained on but not known.
    """

    dataset: Dataset
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    targets: NDArray[np.bool_]
    known: NDArray[np.bool_]
    validation_candidates: NDArray[np.bool_]
    test_candidates: NDArray[np.bool_]
    protocol: str
    order: Order = "time"
    validation_in_history: bool = True

    def __post_init__(self) -> None:
        data = self.dataset.interactions
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        for name in ("train", "test"):
            if not len(parts[name]):
                raise DataError(
                    f"the {name} part is empty: {self.protocol}; {len(data)} interactions of {self.dataset.num_users} "
                    "users do not suffice. Use other shares or more data"
                )
        rows = np.concatenate(list(parts.values()))
        if rows.min() < 0 or rows.max() >= len(data):
            raise DataError(f"rows of the split are outside the {len(data)} interactions; split this very data set")
        uses = np.bincount(rows, minlength=len(data))
        if uses.max() > 1:
            raise DataError(
                f"interaction {uses.argmax()} has more than one role in the split; give it to train, validation or test"
            )
        for name, part in parts.items():
            if not _is_sorted(self.dataset, part, self.order):
                raise DataError(f"the {name} rows are not ordered by user, time and input order; sort them")
        for name, mask, size in (
            ("targets", self.targets, len(self.train)),
            ("known", self.known, self.dataset.num_items),
            ("validation_candidates", self.validation_candidates, self.dataset.num_items),
            ("test_candidates", self.test_candidates, self.dataset.num_items),
        ):
            if mask.shape != (size,) or mask.dtype != np.bool_:
                raise DataError(f"{name} is {mask.dtype} {mask.shape}; give a boolean mask of shape ({size},)")
        strange = self.train[~self.known[data.item[self.train]]]
        if len(strange):
            raise DataError(
                f"interaction {strange[0]} is a training one but its item is not known; add it to the known items"
            )
        for name in ("validation", "test"):
            unranked = parts[name][~self.candidates(name)[data.item[parts[name]]]]
            if len(unranked):
                raise DataError(
                    f"interaction {unranked[0]} is a {name} target but its item is no candidate; "
                    "add it to the candidates"
                )

    def training(self) -> tuple[Sequences, NDArray[np.bool_]]:
        """Returns the users' training sequences and, aligned with their entries, the mask of training targets."""
        return sequences(self.dataset, self.train), self.targets

    def history(self, phase: Phase) -> Sequences:
        """Returns what is known of each user when a phase's targets are predicted."""
        return sequences(self.dataset, self._history_rows(phase))

    def targets_of(self, phase: Phase) -> Sequences:
        """Returns each user's targets in a phase."""
        return sequences(self.dataset, self._target_rows(phase))

    def candidates(self, phase: Phase) -> NDArray[np.bool_]:
        """Returns the mask [I] of the items ranked in a phase."""
        return self.validation_candidates if phase == "validation" else self.test_candidates

    def statistics(self) -> dict[str, int | float]:
        """Returns the sizes of the parts and, for each phase, how its targets relate to the data known before.

        `_unseen_item` counts targets whose item has no training interaction; `_repeated_share` is the share of targets
        whose item is in the user's history already; `_without_history` counts targets of users with empty histories.
        """
        data, num_items = self.dataset.interactions, self.dataset.num_items
        trained = np.bincount(data.item[self.train], minlength=num_items) > 0
        figures: dict[str, int | float] = {
            "train": len(self.train),
            "train_users": int(np.unique(data.user[self.train]).size),
            "train_items": int(trained.sum()),
            "train_targets": int(self.targets.sum()),
            "known_items": int(self.known.sum()),
        }
        phases: tuple[Phase, ...] = ("validation", "test")
        for phase in phases:
            rows, history = self._target_rows(phase), self._history_rows(phase)
            pairs, seen = (data.user[part].astype(np.int64) * num_items + data.item[part] for part in (rows, history))
            lengths = np.bincount(data.user[history], minlength=self.dataset.num_users)
            figures[phase] = len(rows)
            figures[f"{phase}_users"] = int(np.unique(data.user[rows]).size)
            figures[f"{phase}_candidates"] = int(self.candidates(phase).sum())
            figures[f"{phase}_unseen_item"] = int((~trained[data.item[rows]]).sum())
            figures[f"{phase}_without_history"] = int((lengths[data.user[rows]] == 0).sum())
            figures[f"{phase}_repeated_share"] = float(np.isin(pairs, seen).mean()) if len(rows) else 0.0
        return figures

    def _target_rows(self, phase: Phase) -> NDArray[np.int64]:
        return self.validation if phase == "validation" else self.test

    def _history_rows(self, phase: Phase) -> NDArray[np.int64]:
        if phase == "validation" or not self.validation_in_history:
            return self.train
        return in_order(self.dataset, np.concatenate((self.train, self.validation)), self.order)


def times(dataset: Dataset, order: Order) -> NDArray[np.int64] | NDArray[np.float64]:
    """Returns what orders the interactions [E]: their timestamps, or their positions in the input."""
    if order not in ("time", "input"):
        raise ValueError(f"order must be 'time' or 'input', not {order!r}")
    if order == "input":
        return np.arange(len(dataset.interactions))
    if dataset.interactions.timestamp is None:
        raise DataError(
            f"data set {dataset.name!r} has no timestamps to split by; name its time column, or give "
            'order="input" if its rows are in order of time'
        )
    return dataset.interactions.timestamp


def in_order(dataset: Dataset, rows: NDArray[np.int64], order: Order) -> NDArray[np.int64]:
    """Returns the rows ordered by user, time and input order."""
    return rows[np.lexsort((rows, times(dataset, order)[rows], dataset.interactions.user[rows]))]


def _is_sorted(dataset: Dataset, rows: NDArray[np.int64], order: Order) -> bool:
    """Returns whether rows are ordered by user, time and input order, without sorting them."""
    sorted_so_far = rows[:-1] < rows[1:]
    for column in (times(dataset, order)[rows], dataset.interactions.user[rows]):
        before, after = column[:-1], column[1:]
        sorted_so_far = (before < after) | ((before == after) & sorted_so_far)
    return bool(sorted_so_far.all())


def positions(dataset: Dataset, order: Order) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns all rows by user and time and, for each, its position in the user's sequence and its length [E]."""
    rows = in_order(dataset, np.arange(len(dataset.interactions)), order)
    user = dataset.interactions.user[rows]
    offsets = sequences(dataset, rows).offsets
    return rows, np.arange(len(rows)) - offsets[user], np.diff(offsets)[user]


def sequences(dataset: Dataset, rows: NDArray[np.int64]) -> Sequences:
    """Gathers rows that are ordered by user."""
    data = dataset.interactions.take(rows)
    offsets = np.zeros(dataset.num_users + 1, np.int64)
    np.cumsum(np.bincount(data.user, minlength=dataset.num_users), out=offsets[1:])
    return Sequences(offsets, data.item, data.rating, data.timestamp)
