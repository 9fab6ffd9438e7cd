"""A seeded random split."""

import numpy as np

from llm4rec_jax.data.interactions import Dataset
from llm4rec_jax.data.splits.registry import check_shares, describe_order, make_split, register
from llm4rec_jax.data.splits.split import Order, Split, positions, sequences


@register("random")
def random(
    dataset: Dataset, *, validation: float = 0.1, test: float = 0.1, seed: int = 0, order: Order = "time"
) -> Split:
    """Tests on a random share of each user's interactions and validates on another.

    A user's n interactions give floor(n · test) and floor(n · validation) targets, so users with few have none.
    Histories may hold interactions that come after the target, which flatters sequential models: use it only to
    compare with work that splits so.

    Args:
        dataset: the data.
        validation, test: shares of each user's interactions.
        seed: seed of the draw.
        order: order of the items in a history.

    Raises:
        ValueError: if the shares are not sensible.
        DataError: if the data has no timestamps and the order is by time, or nothing falls into the test.
    """
    check_shares(validation, test)
    rows, _, count = positions(dataset, order)
    user = dataset.interactions.user[rows]
    draws = np.random.default_rng(seed).random(len(rows))
    # The rank of each interaction among its user's, by the drawn number.
    by_draw = np.lexsort((draws, user))
    rank = np.empty(len(rows), np.int64)
    rank[by_draw] = np.arange(len(rows)) - sequences(dataset, rows).offsets[user[by_draw]]
    num_test = np.floor(count * test + 1e-9)
    is_test = rank < num_test
    is_validation = ~is_test & (rank < num_test + np.floor(count * validation + 1e-9))
    return make_split(
        dataset,
        train=rows[~is_test & ~is_validation],
        validation=rows[is_validation],
        test=rows[is_test],
        protocol=f"random: of each user's interactions {test:g} (rounded down) test and {validation:g} validate, drawn "
        f"with seed {seed}; histories may hold later interactions; {describe_order(order)}",
        order=order,
    )
