"""Filters that reduce a data set. Rows are renumbered; users, items and interactions keep their order."""

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import DataError, Dataset


def min_rating(dataset: Dataset, threshold: float) -> Dataset:
    """Keeps the interactions rated `threshold` or higher.

    Users without an interaction are dropped. Items stay in the catalogue, since it is what can be recommended.

    Raises:
        DataError: if the data has no ratings, or no rating is high enough.
    """
    ratings = dataset.interactions.rating
    if ratings is None:
        raise DataError(f"data set {dataset.name!r} has no ratings to filter by; drop the min_rating filter")
    keep = ratings >= threshold
    if not keep.any():
        raise DataError(
            f"min_rating {threshold:g} leaves none of the {len(keep)} interactions of {dataset.name!r}, "
            f"whose highest rating is {ratings.max():g}; lower the threshold"
        )
    users = np.bincount(dataset.interactions.user[keep], minlength=dataset.num_users) > 0
    return _select(dataset, keep, users, np.ones(dataset.num_items, bool))


def k_core(dataset: Dataset, k: int, *, user_k: int | None = None, item_k: int | None = None) -> Dataset:
    """Drops users and items with too few interactions until all that are left have enough.

    Repeated user-item pairs count each; `deduplicate` first to count distinct ones.

    Args:
        dataset: the data.
        k: the fewest interactions of a user and of an item.
        user_k: the fewest of a user, where it differs from `k`.
        item_k: the fewest of an item, where it differs from `k`.

    Raises:
        DataError: if nothing is left, or a number is below 1.
    """
    user_k = k if user_k is None else user_k
    item_k = k if item_k is None else item_k
    if min(user_k, item_k) < 1:
        raise DataError(
            f"k_core with {user_k} interactions a user and {item_k} an item: give 1 or more, or leave it out"
        )
    user, item = dataset.interactions.user, dataset.interactions.item
    rows = np.arange(len(user))
    while True:
        users = np.bincount(user[rows], minlength=dataset.num_users) >= user_k
        items = np.bincount(item[rows], minlength=dataset.num_items) >= item_k
        stays = users[user[rows]] & items[item[rows]]
        if stays.all():
            break
        rows = rows[stays]
    if not len(rows):
        raise DataError(
            f"k_core with {user_k} interactions a user and {item_k} an item leaves none of the {len(user)} "
            f"interactions of {dataset.name!r} ({dataset.num_users} users, {dataset.num_items} items); lower k"
        )
    keep = np.zeros(len(user), bool)
    keep[rows] = True
    return _select(dataset, keep, users, items)


def deduplicate(dataset: Dataset, keep: Literal["first", "last"] = "first") -> Dataset:
    """Keeps one interaction of each user-item pair: the first or last in time, ties and missing times by input order.

    Raises:
        ValueError: if `keep` is neither.
    """
    if keep not in ("first", "last"):
        raise ValueError(f"keep must be 'first' or 'last', not {keep!r}")
    data = dataset.interactions
    time = np.arange(len(data)) if data.timestamp is None else data.timestamp
    order = np.lexsort((time, data.item, data.user))
    user, item = data.user[order], data.item[order]
    changes = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    chosen = np.concatenate(([True], changes) if keep == "first" else (changes, [True]))
    mask = np.zeros(len(data), bool)
    mask[order[chosen]] = True
    return _select(dataset, mask, np.ones(dataset.num_users, bool), np.ones(dataset.num_items, bool))


def _select(
    dataset: Dataset, interactions: NDArray[np.bool_], users: NDArray[np.bool_], items: NDArray[np.bool_]
) -> Dataset:
    """Keeps the masked interactions [E], users [U] and items [I] and renumbers the indices."""
    kept = dataset.interactions.take(interactions)
    user_rows = (np.cumsum(users) - 1).astype(np.int32)
    item_rows = (np.cumsum(items) - 1).astype(np.int32)
    return Dataset(
        dataset.name,
        dataclasses.replace(kept, user=user_rows[kept.user], item=item_rows[kept.item]),
        dataset.items.filter(items),
        dataset.users.filter(users),
    )
