"""A split that came with the data."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import PARTS, DataError, Dataset
from llm4rec_jax.data.splits.registry import describe_order, make_split, register
from llm4rec_jax.data.splits.split import Order, Split, in_order


@register("given")
def given(
    dataset: Dataset,
    *,
    order: Order | None = None,
    candidates: str | Path | Sequence[str] | None = None,
    candidate_column: str = "item_id",
) -> Split:
    """Takes the parts that the source read, from a column or from three files (source "table").

    Args:
        dataset: data whose interactions have a part.
        order: order of the items in a history; by time where the data has timestamps, else by input order.
        candidates: ids of the items that validation and test rank, or a table that lists them; all items by default.
        candidate_column: the id column of that table.

    Raises:
        FileNotFoundError: if the table of candidates is missing.
        DataError: if the data has no parts, train or test is empty, a candidate is no item of the data, or a target
            is no candidate.
    """
    data = dataset.interactions
    if data.part is None:
        raise DataError(
            f"data set {dataset.name!r} has no parts for split 'given'; give the options part, or validation_path and "
            "test_path, to source 'table'"
        )
    order = order or ("input" if data.timestamp is None else "time")
    rows = in_order(dataset, np.arange(len(data)), order)
    train, validation, test = (rows[data.part[rows] == part] for part in range(len(PARTS)))
    protocol = f"given: parts as they came with the data; {describe_order(order)}"
    if candidates is None:
        return make_split(dataset, train=train, validation=validation, test=test, protocol=protocol, order=order)
    ranked = _candidate_mask(dataset, candidates, candidate_column)
    return Split(
        dataset,
        train,
        validation,
        test,
        targets=np.ones(len(train), bool),
        known=np.ones(dataset.num_items, bool),
        validation_candidates=ranked,
        test_candidates=ranked,
        protocol=f"{protocol}; {int(ranked.sum())} given items are candidates",
        order=order,
    )


def _candidate_mask(dataset: Dataset, candidates: str | Path | Sequence[str], column: str) -> NDArray[np.bool_]:
    if isinstance(candidates, (str, Path)):
        # Sources read prepared data, which needs splits: only a table of candidates needs a source's reader here.
        from llm4rec_jax.data.sources.formats import read_table
        from llm4rec_jax.data.sources.reading import ids

        wanted = ids(read_table(Path(candidates)), column).to_list()
    else:
        wanted = [str(item) for item in candidates]
    row_of = {item: row for row, item in enumerate(dataset.items["item_id"])}
    missing = [item for item in wanted if item not in row_of]
    if missing:
        raise DataError(f"candidate {missing[0]!r} is no item of {dataset.name!r} ({len(missing)} such); remove it")
    mask = np.zeros(dataset.num_items, bool)
    mask[[row_of[item] for item in wanted]] = True
    return mask
