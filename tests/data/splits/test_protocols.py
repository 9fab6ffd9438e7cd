import dataclasses

import numpy as np
import polars as pl
import pytest

from llm4rec_jax.data.interactions import DataError, Dataset, Interactions
from llm4rec_jax.data.sources import load
from llm4rec_jax.data.splits.protocols import SPLITS, cold_items, few_shot, global_time, leave_one_out, ratio
from llm4rec_jax.data.splits.split import Split

PHASES = ("validation", "test")


def random_dataset(seed: int, users: int = 40, items: int = 40, size: int = 300, times: int = 25) -> Dataset:
    """Few distinct times make for many ties; some users have one interaction or none."""
    rng = np.random.default_rng(seed)
    return Dataset(
        "random",
        Interactions(
            (users * rng.random(size) ** 5).astype(np.int32),
            rng.integers(items - 2, size=size, dtype=np.int32),
            rng.integers(1, 6, size).astype(np.float32),
            rng.integers(0, times, size),
        ),
        pl.DataFrame({"item_id": [f"i{i}" for i in range(items)]}),
        pl.DataFrame({"user_id": [f"u{u}" for u in range(users)]}),
    )


def untimed(dataset: Dataset) -> Dataset:
    data = dataset.interactions
    return Dataset("untimed", Interactions(data.user, data.item), dataset.items, dataset.users)


def by_user(dataset: Dataset, order: str = "time") -> list[list[int]]:
    """Each user's rows in order of time, by plain Python."""
    data = dataset.interactions
    result: list[list[int]] = [[] for _ in range(dataset.num_users)]
    for row in range(len(data)):
        result[data.user[row]].append(row)
    if order == "time":
        assert data.timestamp is not None
        time = data.timestamp.tolist()
        for rows in result:
            rows.sort(key=lambda row: (time[row], row))
    return result


def flat(rows: list[list[int]]) -> list[int]:
    return [row for part in rows for row in part]


def check_sequences(split: Split) -> None:
    """Compares histories and targets with plain Python, from the rows of the split."""
    data = split.dataset.interactions
    order = by_user(split.dataset, split.order)
    parts = {name: set(getattr(split, name).tolist()) for name in ("train", *PHASES)}
    for phase in PHASES:
        past = parts["train"] | (parts["validation"] if phase == "test" and split.validation_in_history else set())
        history, targets = split.history(phase), split.targets_of(phase)
        for user, rows in enumerate(order):
            assert history.of(user).tolist() == [data.item[row] for row in rows if row in past]
            assert targets.of(user).tolist() == [data.item[row] for row in rows if row in parts[phase]]
        assert history.offsets.dtype == np.int64
        assert history.items.dtype == np.int32
        assert history.offsets[-1] == len(history.items) == len(past)
        if data.rating is not None:
            assert history.ratings is not None
            expected = [data.rating[row] for rows in order for row in rows if row in past]
            assert history.ratings.tolist() == expected
    training, mask = split.training()
    assert training.items.tolist() == data.item[split.train].tolist()
    assert mask.tolist() == split.targets.tolist()
    assert "\n" not in split.protocol


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("order", ["time", "input"])
def test_leave_one_out_agrees_with_loops(seed, order):
    dataset = random_dataset(seed)
    split = leave_one_out(dataset, order=order)
    users = by_user(dataset, order)
    assert min(map(len, users)) < 3
    assert split.train.tolist() == flat([rows[:-2] if len(rows) >= 3 else rows for rows in users])
    assert split.validation.tolist() == flat([rows[-2:-1] if len(rows) >= 3 else [] for rows in users])
    assert split.test.tolist() == flat([rows[-1:] if len(rows) >= 3 else [] for rows in users])
    assert split.known.all()
    assert split.targets.all()
    check_sequences(split)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", ["time", "input"])
@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.1), (0.29, 0.3), (0, 0.5)])
def test_ratio_agrees_with_loops(seed, order, validation, test):
    dataset = random_dataset(seed)
    split = ratio(dataset, validation=validation, test=test, order=order)
    expected: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for rows in by_user(dataset, order):
        last = len(rows) - int(len(rows) * test + 1e-9)
        middle = last - int(len(rows) * validation + 1e-9)
        expected["train"] += rows[:middle]
        expected["validation"] += rows[middle:last]
        expected["test"] += rows[last:]
    for name, rows in expected.items():
        assert getattr(split, name).tolist() == rows
    check_sequences(split)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("order", ["time", "input"])
def test_global_time_agrees_with_loops(seed, order):
    dataset = random_dataset(seed)
    split = global_time(dataset, validation=0.2, test=0.3, order=order)
    data = dataset.interactions
    assert data.timestamp is not None
    time = data.timestamp.tolist() if order == "time" else list(range(len(data)))
    ascending = sorted(time)
    first_validation, first_test = ascending[150], ascending[210]
    users = by_user(dataset, order)
    assert split.train.tolist() == [row for row in flat(users) if time[row] < first_validation]
    assert split.validation.tolist() == [row for row in flat(users) if first_validation <= time[row] < first_test]
    assert split.test.tolist() == [row for row in flat(users) if time[row] >= first_test]
    trained = set(data.item[split.train].tolist())
    assert split.known.tolist() == [item in trained for item in range(dataset.num_items)]
    assert split.validation_candidates.all()
    check_sequences(split)


def test_equal_times_never_straddle_a_cut():
    for seed in range(5):
        dataset = random_dataset(seed, times=6)
        split = global_time(dataset)
        assert dataset.interactions.timestamp is not None
        times = [set(dataset.interactions.timestamp[rows]) for rows in (split.train, split.validation, split.test)]
        assert not times[0] & times[1]
        assert not times[0] & times[2]
        assert not times[1] & times[2]


@pytest.mark.parametrize("seed", range(5))
def test_cold_items_have_no_training_interaction(seed):
    dataset = random_dataset(seed)
    split = cold_items(dataset, share=0.3, seed=seed)
    item = dataset.interactions.item
    used = set(item.tolist())
    cold = {phase: set(np.flatnonzero(split.candidates(phase)).tolist()) for phase in PHASES}
    assert len(cold["validation"]) + len(cold["test"]) == round(0.3 * len(used))
    assert len(cold["test"]) - len(cold["validation"]) in (0, 1)
    assert not cold["validation"] & cold["test"]
    assert cold["validation"] | cold["test"] <= used
    rows = flat(by_user(dataset))
    for phase in PHASES:
        assert getattr(split, phase).tolist() == [row for row in rows if item[row] in cold[phase]]
        assert split.history(phase).items.tolist() == item[split.train].tolist()
    assert split.train.tolist() == [row for row in rows if split.known[item[row]]]
    assert set(np.flatnonzero(~split.known).tolist()) == cold["validation"] | cold["test"]
    check_sequences(split)
    again, other = cold_items(dataset, share=0.3, seed=seed), cold_items(dataset, share=0.3, seed=seed + 1)
    assert np.array_equal(again.test, split.test)
    assert not np.array_equal(other.test, split.test)
    assert again.protocol == split.protocol != other.protocol


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 4])
def test_few_shot_per_user_keeps_the_latest(seed, k):
    split = leave_one_out(random_dataset(seed))
    small = few_shot(split, k)
    user = split.dataset.interactions.user
    assert small.train.tolist() == [
        row for u in range(split.dataset.num_users) for row in split.train[user[split.train] == u][-k:]
    ]
    assert np.array_equal(small.test, split.test)
    assert f"latest {k}" in small.protocol
    check_sequences(small)


def test_few_shot_in_total_draws_targets_and_keeps_histories():
    split = leave_one_out(random_dataset(0))
    small = few_shot(split, 16, per="total", seed=3)
    assert np.array_equal(small.train, split.train)
    assert small.targets.sum() == 16
    training, targets = small.training()
    assert not targets[training.offsets[:-1][np.diff(training.offsets) > 0]].any()
    assert np.array_equal(few_shot(split, 16, per="total", seed=3).targets, small.targets)
    assert not np.array_equal(few_shot(split, 16, per="total", seed=4).targets, small.targets)
    assert few_shot(small, 2).targets.sum() <= 16
    check_sequences(small)
    with pytest.raises(DataError, match=r"asks for 100000 training targets.*lower k"):
        few_shot(split, 100_000, per="total")
    with pytest.raises(ValueError, match="k must be positive"):
        few_shot(split, 0)
    with pytest.raises(ValueError, match="'user' or 'total'"):
        few_shot(split, 1, per="item")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["leave_one_out", "ratio", "global_time", "cold_items"])
def test_missing_timestamps_need_the_input_order(name):
    dataset = untimed(random_dataset(0))
    with pytest.raises(DataError, match=r"'untimed' has no timestamps.*order=\"input\""):
        SPLITS.lookup(name)(dataset)
    split = SPLITS.lookup(name)(dataset, order="input")
    assert "order by input" in split.protocol
    assert split.history("test").timestamps is None
    check_sequences(split)
    with pytest.raises(ValueError, match="'time' or 'input'"):
        SPLITS.lookup(name)(dataset, order="random")


def test_unknown_split_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown split 'leave_one_ou'; did you mean 'leave_one_out'.*global_time"):
        SPLITS.lookup("leave_one_ou")


def test_statistics():
    data = Interactions(
        np.array([0, 0, 0, 0, 1, 1, 1, 2], np.int32),
        np.array([0, 1, 2, 0, 1, 3, 0, 1], np.int32),
        None,
        np.arange(8),
    )
    tables = pl.DataFrame({"item_id": list("abcde")}), pl.DataFrame({"user_id": list("uvw")})
    figures = leave_one_out(Dataset("tiny", data, *tables)).statistics()
    assert figures == {
        "train": 4,
        "train_users": 3,
        "train_items": 2,
        "train_targets": 4,
        "known_items": 5,
        "validation": 2,
        "validation_users": 2,
        "validation_candidates": 5,
        "validation_unseen_item": 2,
        "validation_without_history": 0,
        "validation_repeated_share": 0.0,
        "test": 2,
        "test_users": 2,
        "test_candidates": 5,
        "test_unseen_item": 0,
        "test_without_history": 0,
        "test_repeated_share": 0.5,
    }


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.1, 0), (0.5, 0.5), (float("nan"), 0.1)])
def test_senseless_shares_are_errors(shares):
    for split in (ratio, global_time):
        with pytest.raises(ValueError, match="sum below 1"):
            split(random_dataset(0), validation=shares[0], test=shares[1])


def test_cold_items_needs_enough_items():
    with pytest.raises(DataError, match=r"makes 0 of the 38 items.*at least 2 cold"):
        cold_items(random_dataset(0), share=0.01)
    with pytest.raises(DataError, match=r"makes 38 of the 38 items"):
        cold_items(random_dataset(0), share=0.999)
    with pytest.raises(ValueError, match="between 0 and 1"):
        cold_items(random_dataset(0), share=1.5)


def test_empty_parts_are_errors():
    dataset = random_dataset(0, users=200, size=50)
    with pytest.raises(DataError, match=r"test part is empty.*more data"):
        ratio(dataset, test=0.001)
    same_time = random_dataset(0, times=1)
    with pytest.raises(DataError, match=r"train part is empty"):
        global_time(same_time)


def test_inconsistent_splits_are_errors():
    split = leave_one_out(random_dataset(0))
    with pytest.raises(DataError, match=r"more than one role"):
        dataclasses.replace(split, validation=split.test)
    with pytest.raises(DataError, match=r"test rows are not ordered"):
        dataclasses.replace(split, test=split.test[::-1])
    with pytest.raises(DataError, match=r"outside the 300 interactions"):
        dataclasses.replace(split, test=np.array([300]))
    with pytest.raises(DataError, match=r"test target but its item is no candidate"):
        dataclasses.replace(split, test_candidates=~split.test_candidates)
    with pytest.raises(DataError, match=r"a training one but its item is not known"):
        dataclasses.replace(split, known=~split.known)
    with pytest.raises(DataError, match=r"targets is bool .*give a boolean mask"):
        dataclasses.replace(split, targets=split.targets[1:])


def test_leave_one_out_of_movielens():
    split = leave_one_out(load("movielens_100k"))
    figures = split.statistics()
    assert figures["test"] == figures["validation"] == 943
    assert figures["train"] == 100_000 - 2 * 943
    assert figures["test_repeated_share"] == 0
    history = split.history("test")
    assert history.timestamps is not None
    within_user = np.diff(history.offsets) > 0
    assert within_user.all()
    steps = np.diff(history.timestamps)
    steps[history.offsets[1:-1] - 1] = 0
    assert (steps >= 0).all()
