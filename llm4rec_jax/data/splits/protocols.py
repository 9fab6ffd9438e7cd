"""Splits of a data set's interactions into training, validation and test."""

import dataclasses
from typing import Literal

import numpy as np

from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.data.splits.registry import (
    SPLITS,
    check_shares,
    describe_order,
    make_split,
    register,
    with_candidates,
)
from llm4rec_jax.data.splits.split import Order, Split, in_order, positions, sequences, times

__all__ = ["SPLITS", "cold_items", "few_shot", "global_time", "leave_one_out", "ratio", "register"]

# Added before rounding down, so that a share of 0.29 of 100 interactions is 29.
_EPSILON = 1e-9


@register("leave_one_out")
def leave_one_out(dataset: Dataset, *, order: Order = "time") -> Split:
    """Tests on each user's last interaction and validates on the one before.

    Users with fewer than 3 interactions only train. Interactions of one time are taken in input order. All items are
    known and candidates.

    Raises:
        DataError: if the data has no timestamps and the order is by time, or no user has 3 interactions.
    """
    rows, position, count = positions(dataset, order)
    held_out = count >= 3
    from_end = count - position
    return make_split(
        dataset,
        train=rows[~held_out | (from_end > 2)],
        validation=rows[held_out & (from_end == 2)],
        test=rows[held_out & (from_end == 1)],
        protocol=_leave_one_out(order),
        order=order,
    )


def leave_one_out_protocol(num_items: int, order: Order) -> str:
    """The protocol of `leave_one_out` over a catalogue."""
    return with_candidates(_leave_one_out(order), num_items)


def _leave_one_out(order: Order) -> str:
    return (
        "leave-one-out: each user's last interaction tests, the one before validates, users with fewer than 3 "
        f"only train; {describe_order(order)}"
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
    check_shares(validation, test)
    rows, position, count = positions(dataset, order)
    num_test = np.floor(count * test + _EPSILON)
    num_validation = np.floor(count * validation + _EPSILON)
    from_end = count - position
    is_test = from_end <= num_test
    is_validation = ~is_test & (from_end <= num_test + num_validation)
    return make_split(
        dataset,
        train=rows[~is_test & ~is_validation],
        validation=rows[is_validation],
        test=rows[is_test],
        protocol=f"ratio: of each user's interactions the last {test:g} (rounded down) test, the {validation:g} before "
        f"validate; {describe_order(order)}",
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
    check_shares(validation, test)
    time = times(dataset, order)
    ascending = np.sort(time)
    first_validation, first_test = (
        ascending[min(int(len(time) * share + _EPSILON), len(time) - 1)] for share in (1 - validation - test, 1 - test)
    )
    rows = in_order(dataset, np.arange(len(time)), order)
    in_train, in_test = time[rows] < first_validation, time[rows] >= first_test
    train = rows[in_train]
    return make_split(
        dataset,
        train=train,
        validation=rows[~in_train & ~in_test],
        test=rows[in_test],
        protocol=f"global time: validation from {first_validation} (share {validation:g}), test from {first_test} "
        f"(share {test:g}), equal times in one part; known items have training interactions; {describe_order(order)}",
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
    rows = in_order(dataset, np.arange(len(item)), order)
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
        f"{describe_order(order)}",
        order=order,
        validation_in_history=False,
    )


def few_shot(split: Split, k: int, *, per: Literal["user", "total"] = "user", seed: int = 0) -> Split:
    """Reduces the training data; validation and test targets stay.

    Args:
        split: the split to reduce.
        k: number of training interactions that are left.
        per: "user" keeps the latest k training interactions of each user, in histories too. "total" draws k training
            targets that have an earlier training interaction of their user; histories stay whole.
        seed: seed of the draw of "total".

    Raises:
        ValueError: if `k` is not positive or `per` is unknown.
        DataError: if there are fewer than k training interactions to draw.
    """
    if k < 1:
        raise ValueError(f"k must be positive, not {k}")
    offsets = sequences(split.dataset, split.train).offsets
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
