"""The registry of splits. A new split is one function in one file of this package."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import Dataset
from llm4rec_jax.data.splits.split import Order, Split
from llm4rec_jax.registry import Registry

Splitter = Callable[..., Split]
"""Takes the data set first, then its options as keywords."""

SPLITS: Registry[Splitter] = Registry("split")
register = SPLITS.register


def make_split(
    dataset: Dataset,
    *,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    test: NDArray[np.int64],
    protocol: str,
    order: Order,
    known: NDArray[np.bool_] | None = None,
) -> Split:
    """Makes a split in which all training interactions are targets and all items are candidates and, by default, known.

    Args:
        dataset: the data.
        train, validation, test: rows of the interactions, ordered by user, time and input order.
        protocol: one line that states the procedure; the number of candidates is added.
        order: whether time is the timestamp or the position in the input.
        known: bool [I], the items that exist at training time; all by default.
    """
    all_items = np.ones(dataset.num_items, bool)
    return Split(
        dataset,
        train,
        validation,
        test,
        targets=np.ones(len(train), bool),
        known=all_items if known is None else known,
        validation_candidates=all_items,
        test_candidates=all_items,
        protocol=with_candidates(protocol, dataset.num_items),
        order=order,
    )


def with_candidates(protocol: str, num_items: int) -> str:
    """Adds to a protocol that all items are candidates."""
    return f"{protocol}; all {num_items} items are candidates"


def describe_order(order: Order) -> str:
    """Words the order of a user's interactions for a protocol."""
    return "order by time, ties by input order" if order == "time" else "order by input"


def check_shares(validation: float, test: float) -> None:
    """Raises ValueError unless shares leave something for training and for the test."""
    if not (validation >= 0 and test > 0 and validation + test < 1):  # a NaN is refused, too
        raise ValueError(
            f"validation={validation} must be at least 0, test={test} above 0, and their sum below 1; give other shares"
        )
