from collections import Counter

import numpy as np
import polars as pl
import pytest

from llm4rec_jax.data.filters import deduplicate, k_core, min_rating
from llm4rec_jax.data.interactions import DataError, Dataset, Interactions


def random_dataset(seed: int, users: int = 30, items: int = 25, size: int = 200) -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset(
        "random",
        Interactions(
            rng.integers(users, size=size, dtype=np.int32),
            (items * rng.random(size) ** 2).astype(np.int32),
            rng.integers(1, 6, size).astype(np.float32),
            rng.integers(0, 40, size),
        ),
        pl.DataFrame({"item_id": [f"i{i}" for i in range(items)], "title": [f"T{i}" for i in range(items)]}),
        pl.DataFrame({"user_id": [f"u{u}" for u in range(users)]}),
    )


def rows(dataset: Dataset) -> list[tuple]:
    """The interactions with ids in place of indices."""
    data = dataset.interactions
    columns = [dataset.users["user_id"].to_numpy()[data.user], dataset.items["item_id"].to_numpy()[data.item]]
    columns += [column for column in (data.rating, data.timestamp) if column is not None]
    return [tuple(column[row] for column in columns) for row in range(len(data))]


def naive_k_core(edges: list[tuple], user_k: int, item_k: int) -> list[tuple]:
    while True:
        users, items = Counter(edge[0] for edge in edges), Counter(edge[1] for edge in edges)
        kept = [edge for edge in edges if users[edge[0]] >= user_k and items[edge[1]] >= item_k]
        if kept == edges:
            return edges
        edges = kept


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("user_k", "item_k"), [(3, 3), (6, 3), (1, 9)])
def test_k_core_agrees_with_loops(seed, user_k, item_k):
    dataset = random_dataset(seed)
    core = k_core(dataset, 5, user_k=user_k, item_k=item_k)
    expected = naive_k_core(rows(dataset), user_k, item_k)
    assert rows(core) == expected
    left = {edge[1] for edge in expected}
    assert core.items["item_id"].to_list() == [i for i in dataset.items["item_id"] if i in left]
    assert core.items["title"].to_list() == [i.replace("i", "T") for i in core.items["item_id"]]
    left = {edge[0] for edge in expected}
    assert core.users["user_id"].to_list() == [u for u in dataset.users["user_id"] if u in left]


def test_k_core_takes_several_rounds():
    # A chain: dropping each end makes the next one too short.
    chain = np.arange(9, dtype=np.int32)
    dataset = Dataset(
        "chain",
        Interactions(
            np.concatenate([chain, chain[1:], [9, 9, 10, 10]], dtype=np.int32),
            np.concatenate([chain, chain[:-1], [9, 10, 9, 10]], dtype=np.int32),
        ),
        pl.DataFrame({"item_id": [str(i) for i in range(11)]}),
        pl.DataFrame({"user_id": [str(u) for u in range(11)]}),
    )
    core = k_core(dataset, 2)
    assert core.users["user_id"].to_list() == core.items["item_id"].to_list() == ["9", "10"]
    assert core.interactions.user.tolist() == [0, 0, 1, 1]


def test_k_core_of_nothing_is_an_error():
    with pytest.raises(DataError, match=r"50 interactions a user and 50 an item leaves none of the 200.*lower k"):
        k_core(random_dataset(0), 50)


def test_min_rating_drops_interactions_and_users_but_no_items():
    dataset = random_dataset(1)
    kept = min_rating(dataset, 5)
    expected = [row for row in rows(dataset) if row[2] >= 5]
    assert rows(kept) == expected
    assert kept.num_users == len({row[0] for row in expected}) < dataset.num_users
    assert kept.items.equals(dataset.items)


def test_min_rating_errors():
    dataset = random_dataset(1)
    with pytest.raises(DataError, match=r"min_rating 6 leaves none of the 200.*highest rating is 5; lower"):
        min_rating(dataset, 6)
    data = dataset.interactions
    unrated = Dataset("plain", Interactions(data.user, data.item), dataset.items, dataset.users)
    with pytest.raises(DataError, match=r"'plain' has no ratings.*drop"):
        min_rating(unrated, 3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("timed", [True, False])
def test_deduplicate_agrees_with_loops(seed, keep, timed):
    dataset = random_dataset(seed, users=8, items=8)
    if not timed:
        data = dataset.interactions
        dataset = Dataset("untimed", Interactions(data.user, data.item, data.rating), dataset.items, dataset.users)
    chosen: dict[tuple, int] = {}
    everything = rows(dataset)
    for index, row in enumerate(everything):
        best = chosen.get(row[:2])
        if best is None:
            chosen[row[:2]] = index
        elif keep == "first":
            chosen[row[:2]] = index if timed and row[3] < everything[best][3] else best
        else:
            chosen[row[:2]] = index if not timed or row[3] >= everything[best][3] else best
    result = deduplicate(dataset, keep)
    assert rows(result) == [everything[index] for index in sorted(chosen.values())]
    assert result.items.equals(dataset.items)
    assert result.users.equals(dataset.users)


def test_deduplicate_refuses_other_choices():
    with pytest.raises(ValueError, match="'first' or 'last'"):
        deduplicate(random_dataset(0), "best")  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [0, -3])
def test_k_core_of_nothing_is_refused(k):
    with pytest.raises(DataError, match=f"k_core with {k} interactions a user .*give 1 or more, or leave it out"):
        k_core(random_dataset(0), k)
