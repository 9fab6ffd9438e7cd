"""Splits of a data set's interactions into training, validation and test."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.registry import Registry

Order = Literal["time", "input"]
Phase = Literal["validation", "test"]
# A splitter takes the data set first, then its parameters as keywords.
Splitter = Callable[..., "Split"]

SPLITS: Registry[Splitter] = Registry("split")
register = SPLITS.register

# Added before rounding down, so that a share of 0.29 of 100 interactions is 29.
_EPSILON = 1e-9


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
    """Which interactions train, validate and test, and which items are ranked.

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
            hold a target), rows are out of order, or a target is no candidate.
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
        for name in ("validation", "test"):
            unranked = parts[name][~self.candidates(name)[data.item[parts[name]]]]
            if len(unranked):
                raise DataError(
                    f"interaction {unranked[0]} is a {name} target but its item is no candidate; "
                    "add it to the candidates"
                )

    def training(self) -> tuple[Sequences, NDArray[np.bool_]]:
        """Returns the users' training sequences and, aligned with their entries, the mask of training targets."""
        return _sequences(self.dataset, self.train), self.targets

    def history(self, phase: Phase) -> Sequences:
        """Returns what is known of each user when a phase's targets are predicted."""
        return _sequences(self.dataset, self._history_rows(phase))

    def targets_of(self, phase: Phase) -> Sequences:
        """Returns each user's targets in a phase."""
        return _sequences(self.dataset, self._target_rows(phase))

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
        return _sorted(self.dataset, np.concatenate((self.train, self.validation)), self.order)


@register("leave_one_out")
def leave_one_out(dataset: Dataset, *, order: Order = "time") -> Split:
    """Tests on each user's last interaction and validates on the one before.

    Users with fewer than 3 interactions only train. Interactions of one time are taken in input order. All items are
    known and candidates.

    Raises:
        DataError: if the data has no timestamps and the order is by time, or no user has 3 interactions.
    """
    rows, position, count = _positions(dataset, order)
    held_out = count >= 3
    from_end = count - position
    return _split(
        dataset,
        train=rows[~held_out | (from_end > 2)],
        validation=rows[held_out & (from_end == 2)],
        test=rows[held_out & (from_end == 1)],
        protocol="leave-one-out: each user's last interaction tests, the one before validates, users with fewer than 3 "
        f"only train; {_describe(order)}",
        order=order,
    )


@register("ratio")
def ratio(dataset: Dataset, *, validation: float = 0.1, test: float = 0.1, order: Order = "time") -> Split:
    """Tests on the last share of each user's interactions and validates on the share before.

    A user's n interactions give floor(n · test) and floor(n · validation) targets, so users with few have none.
    Interactions of one time are taken in input order. All items are known and candidates.

    Raises:
        ValueError: if the shares are not sensible.
        DataError: if the data has no timestamps and the order is by time, or nothing falls into the test.
    """
    _check_shares(validation, test)
    rows, position, count = _positions(dataset, order)
    num_test = np.floor(count * test + _EPSILON)
    num_validation = np.floor(count * validation + _EPSILON)
    from_end = count - position
    is_test = from_end <= num_test
    is_validation = ~is_test & (from_end <= num_test + num_validation)
    return _split(
        dataset,
        train=rows[~is_test & ~is_validation],
        validation=rows[is_validation],
        test=rows[is_test],
        protocol=f"ratio: of each user's interactions the last {test:g} (rounded down) test, the {validation:g} before "
        f"validate; {_describe(order)}",
        order=order,
    )


@register("global_time")
def global_time(dataset: Dataset, *, validation: float = 0.1, test: float = 0.1, order: Order = "time") -> Split:
    """Cuts all interactions at two points in time: training before, validation between, test after.

    The cuts are the times below which the shares 1 - validation - test and 1 - test of the interactions lie.
    Interactions of one time stay together, in the later part. Known are the items with a training interaction, since
    others may not have existed; all items are candidates.

    Raises:
        ValueError: if the shares are not sensible.
        DataError: if the data has no timestamps and the order is by time, or train or test is empty.
    """
    _check_shares(validation, test)
    time = _time(dataset, order)
    ascending = np.sort(time)
    first_validation, first_test = (
        ascending[min(int(len(time) * share + _EPSILON), len(time) - 1)] for share in (1 - validation - test, 1 - test)
    )
    rows = _sorted(dataset, np.arange(len(time)), order)
    in_train, in_test = time[rows] < first_validation, time[rows] >= first_test
    train = rows[in_train]
    return _split(
        dataset,
        train=train,
        validation=rows[~in_train & ~in_test],
        test=rows[in_test],
        protocol=f"global time: validation from {first_validation} (share {validation:g}), test from {first_test} "
        f"(share {test:g}), equal times in one part; known items have training interactions; {_describe(order)}",
        order=order,
        known=np.bincount(dataset.interactions.item[train], minlength=dataset.num_items) > 0,
    )


@register("cold_items")
def cold_items(dataset: Dataset, *, share: float = 0.2, seed: int = 0, order: Order = "time") -> Split:
    """Holds out all interactions of a random share of the items.

    Half of the cold items are validation items, the rest test items. All interactions of a phase's items are its
    targets, and these items alone its candidates. Histories are the user's interactions with the other items, in both
    phases and at all times: a test history holds no cold validation item, which training has not seen.

    Args:
        dataset: the data.
        share: share of the items with interactions that are cold.
        seed: seed of the draw.
        order: order of the sequences.

    Raises:
        ValueError: if the share is not between 0 and 1.
        DataError: if the data has no timestamps and the order is by time, or the share leaves no item to a part.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, not be {share}")
    item = dataset.interactions.item
    used = np.flatnonzero(np.bincount(item, minlength=dataset.num_items))
    num_cold = round(len(used) * share)
    if num_cold < 2 or num_cold == len(used):
        raise DataError(
            f"a share of {share:g} makes {num_cold} of the {len(used)} items with interactions cold; "
            "choose one that leaves at least 2 cold and 1 other"
        )
    cold = np.random.default_rng(seed).permutation(used)[:num_cold]
    in_validation, in_test = np.zeros((2, dataset.num_items), bool)
    in_validation[cold[: num_cold // 2]] = True
    in_test[cold[num_cold // 2 :]] = True
    known = ~(in_validation | in_test)
    rows = _sorted(dataset, np.arange(len(item)), order)
    train = rows[known[item[rows]]]
    return Split(
        dataset,
        train,
        validation=rows[in_validation[item[rows]]],
        test=rows[in_test[item[rows]]],
        targets=np.ones(len(train), bool),
        known=known,
        validation_candidates=in_validation,
        test_candidates=in_test,
        protocol=f"cold items: {num_cold // 2} validation and {num_cold - num_cold // 2} test items (share {share:g}, "
        f"seed {seed}) have no training interaction and are ranked among themselves; histories hold no cold item; "
        f"{_describe(order)}",
        order=order,
        validation_in_history=False,
    )


def few_shot(split: Split, k: int, *, per: Literal["user", "total"] = "user", seed: int = 0) -> Split:
    """Reduces the training data; validation and test targets stay.

    Args:
        split: the split to reduce.
        k: how many training interactions are left.
        per: "user" keeps the latest k training interactions of each user, in histories too. "total" draws k training
            targets that have an earlier training interaction of their user; histories stay whole.
        seed: seed of the draw of "total".

    Raises:
        ValueError: if `k` is not positive or `per` is unknown.
        DataError: if there are fewer than k training interactions to draw.
    """
    if k < 1:
        raise ValueError(f"k must be positive, not {k}")
    offsets = _sequences(split.dataset, split.train).offsets
    user = split.dataset.interactions.user[split.train]
    index = np.arange(len(split.train))
    match per:
        case "user":
            kept = offsets[user + 1] - index <= k
            protocol = f"{split.protocol}; few-shot: each user's latest {k} training interactions"
            return dataclasses.replace(split, train=split.train[kept], targets=split.targets[kept], protocol=protocol)
        case "total":
            eligible = np.flatnonzero(split.targets & (index > offsets[user]))
            if len(eligible) < k:
                raise DataError(
                    f"few-shot asks for {k} training targets with a history but there are {len(eligible)}; lower k"
                )
            targets = np.zeros(len(split.train), bool)
            targets[np.random.default_rng(seed).choice(eligible, k, replace=False)] = True
            protocol = f"{split.protocol}; few-shot: {k} training targets drawn with seed {seed}, histories whole"
            return dataclasses.replace(split, targets=targets, protocol=protocol)
    raise ValueError(f"per must be 'user' or 'total', not {per!r}")


def _split(
    dataset: Dataset,
    *,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    test: NDArray[np.int64],
    protocol: str,
    order: Order,
    known: NDArray[np.bool_] | None = None,
) -> Split:
    """Makes a split in which all training interactions are targets and all items are ranked and, by default, known."""
    every = np.ones(dataset.num_items, bool)
    return Split(
        dataset,
        train,
        validation,
        test,
        targets=np.ones(len(train), bool),
        known=every if known is None else known,
        validation_candidates=every,
        test_candidates=every,
        protocol=f"{protocol}; all {dataset.num_items} items are candidates",
        order=order,
    )


def _describe(order: Order) -> str:
    return "order by time, ties by input order" if order == "time" else "order by input"


def _check_shares(validation: float, test: float) -> None:
    if not (validation >= 0 and test > 0 and validation + test < 1):  # a NaN is refused, too
        raise ValueError(
            f"validation={validation} must be at least 0, test={test} above 0, and their sum below 1; give other shares"
        )


def _time(dataset: Dataset, order: Order) -> NDArray[np.int64] | NDArray[np.float64]:
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


def _sorted(dataset: Dataset, rows: NDArray[np.int64], order: Order) -> NDArray[np.int64]:
    """Returns the rows ordered by user, time and input order."""
    return rows[np.lexsort((rows, _time(dataset, order)[rows], dataset.interactions.user[rows]))]


def _is_sorted(dataset: Dataset, rows: NDArray[np.int64], order: Order) -> bool:
    """Returns whether rows are ordered by user, time and input order, without sorting them."""
    sorted_so_far = rows[:-1] < rows[1:]
    for column in (_time(dataset, order)[rows], dataset.interactions.user[rows]):
        before, after = column[:-1], column[1:]
        sorted_so_far = (before < after) | ((before == after) & sorted_so_far)
    return bool(sorted_so_far.all())


def _positions(dataset: Dataset, order: Order) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns all rows by user and time and, for each, its position in the user's sequence and its length [E]."""
    rows = _sorted(dataset, np.arange(len(dataset.interactions)), order)
    user = dataset.interactions.user[rows]
    offsets = _sequences(dataset, rows).offsets
    return rows, np.arange(len(rows)) - offsets[user], np.diff(offsets)[user]


def _sequences(dataset: Dataset, rows: NDArray[np.int64]) -> Sequences:
    """Gathers rows that are ordered by user."""
    data = dataset.interactions.take(rows)
    offsets = np.zeros(dataset.num_users + 1, np.int64)
    np.cumsum(np.bincount(data.user, minlength=dataset.num_users), out=offsets[1:])
    return Sequences(offsets, data.item, data.rating, data.timestamp)
