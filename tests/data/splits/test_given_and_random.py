"""Splits that come with the data, and a seeded random one."""

import re

import numpy as np
import polars as pl
import pytest

from llm4rec_jax.data.interactions import DataError, Dataset, Interactions
from llm4rec_jax.data.sources import load, load_labeled
from llm4rec_jax.data.splits.registry import SPLITS

LOG = "user_id,item_id,timestamp,fold,label\n" + "".join(
    f"u{u},i{(u + n) % 7},{n},{fold},{(u + n) % 2}\n"
    for u in range(4)
    for n, fold in enumerate(["train", "Train", "training", "valid", "test"])
)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    return path


def in_files(log, tmp_path):
    header, *lines = LOG.splitlines()
    paths = [tmp_path / f"{name}.csv" for name in ("train", "valid", "test")]
    for path in paths:
        own = [line for line in lines if re.sub("ing$", "", line.split(",")[3].lower()) == path.stem]
        path.write_text("\n".join([header, *own]))
    return load("table", paths[0], timestamp="timestamp", validation_path=paths[1], test_path=str(paths[2]))


def pairs(dataset: Dataset, rows: np.ndarray) -> list[tuple[str, str]]:
    users, items = dataset.users["user_id"].to_numpy(), dataset.items["item_id"].to_numpy()
    data = dataset.interactions
    return sorted(zip(users[data.user[rows]].tolist(), items[data.item[rows]].tolist(), strict=True))


class TestGiven:
    def test_a_column_and_three_files_give_the_same_split(self, log, tmp_path):
        by_column = SPLITS.build("given", load("table", log, timestamp="timestamp", part="fold"))
        by_files = SPLITS.build("given", in_files(log, tmp_path))
        for split in (by_column, by_files):
            assert pairs(split.dataset, split.test) == [(f"u{u}", f"i{(u + 4) % 7}") for u in range(4)]
            assert pairs(split.dataset, split.validation) == sorted((f"u{u}", f"i{(u + 3) % 7}") for u in range(4))
            assert len(split.train) == 12
            assert split.order == "time"
        assert by_column.protocol.startswith("given: parts as they came with the data")

    def test_given_candidates(self, log, tmp_path):
        dataset = load("table", log, part="fold")
        split = SPLITS.build("given", dataset, candidates=[f"i{i}" for i in range(3, 7)] + ["i0"])
        assert split.test_candidates.sum() == 5
        assert split.order == "input"
        listed = tmp_path / "candidates.csv"
        listed.write_text("item_id\ni3\ni4\ni5\ni6\ni0\n")
        again = SPLITS.build("given", dataset, candidates=str(listed))
        np.testing.assert_array_equal(split.test_candidates, again.test_candidates)
        with pytest.raises(DataError, match=r"candidate 'i9' is no item of 'log' \(1 such\)"):
            SPLITS.build("given", dataset, candidates=["i9"])
        with pytest.raises(DataError, match="target but its item is no candidate"):
            SPLITS.build("given", dataset, candidates=["i1"])

    def test_wrong_parts_are_named(self, log, tmp_path):
        with pytest.raises(DataError, match="has no parts for split 'given'; give the options part"):
            SPLITS.build("given", load("table", log))
        log.write_text(LOG.replace("valid", "holdout", 1))
        with pytest.raises(DataError, match=r"log.csv, line 5: fold 'holdout' is none of train, validation, test"):
            load("table", log, part="fold")
        with pytest.raises(ValueError, match="needs validation_path and test_path"):
            load("table", log, test_path=log)

    def test_errors_of_three_files_name_the_file(self, log, tmp_path):
        in_files(log, tmp_path)
        (tmp_path / "test.csv").write_text("user_id,item_id,timestamp,fold,label\nu0,i1,soon,test,1\n")
        with pytest.raises(DataError, match=r"test.csv, line 2: timestamp 'soon'"):
            load(
                "table", tmp_path / "train.csv", timestamp="timestamp",
                validation_path=tmp_path / "valid.csv", test_path=tmp_path / "test.csv",
            )  # fmt: skip

    def test_parts_belong_to_the_fingerprint(self, log):
        assert load("table", log).fingerprint != load("table", log, part="fold").fingerprint


class TestRandom:
    def dataset(self) -> Dataset:
        rng = np.random.default_rng(0)
        user = rng.integers(9, size=400).astype(np.int32)
        tables = (
            pl.DataFrame({"item_id": [str(i) for i in range(99)]}),
            pl.DataFrame({"user_id": [str(u) for u in range(9)]}),
        )
        data = Interactions(user, rng.integers(99, size=400).astype(np.int32), None, rng.integers(50, size=400))
        return Dataset("toy", data, *tables)

    def test_shares_of_each_user(self):
        dataset = self.dataset()
        split = SPLITS.build("random", dataset, validation=0.2, test=0.1, seed=3)
        counts = np.bincount(dataset.interactions.user, minlength=9)
        for rows, share in ((split.test, 0.1), (split.validation, 0.2)):
            held = np.bincount(dataset.interactions.user[rows], minlength=9)
            np.testing.assert_array_equal(held, np.floor(counts * share + 1e-9))
        everything = np.concatenate([split.train, split.validation, split.test])
        np.testing.assert_array_equal(np.sort(everything), np.arange(400))
        assert "seed 3" in split.protocol

    def test_the_seed_decides(self):
        dataset = self.dataset()
        one, same, other = (SPLITS.build("random", dataset, seed=seed).test for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, other)

    def test_wrong_shares(self):
        with pytest.raises(ValueError, match="their sum below 1"):
            SPLITS.build("random", self.dataset(), validation=0.5, test=0.5)


class TestLabeled:
    def test_labelled_rows_of_a_table(self, log):
        data = load_labeled("labeled_table", log, timestamp="timestamp", part="fold", history=2)
        assert [data.train.size, data.validation.size, data.test.size] == [8, 4, 4]
        # u0: items 0 … 4 with the labels 0 1 0 1 0.
        titles = data.items["item_id"].to_list()
        assert [titles[item] for item in data.test.history[0]] == ["i2", "i3"]
        assert titles[data.test.target[0]] == "i4"
        assert (data.test.liked[0].tolist(), data.test.label[0]) == ([False, True], 0)
        assert data.train.mask[0].tolist() == [True, False]

    def test_without_parts_the_last_in_time_are_tested(self, log):
        data = load_labeled("labeled_table", log, timestamp="timestamp")
        assert [data.train.size, data.validation.size, data.test.size] == [12, 2, 2]
        assert "cut at .8 and .9 of all interactions by time" in data.protocol

    def test_ratings_need_a_threshold(self, log):
        log.write_text(LOG.replace(",1\n", ",5\n").replace(",0\n", ",2\n"))
        with pytest.raises(DataError, match=r"label [25] is neither 0 nor 1; give threshold"):
            load_labeled("labeled_table", log, part="fold")
        data = load_labeled("labeled_table", log, part="fold", threshold=4)
        assert set(data.train.label.tolist()) == {0.0, 1.0}
        assert "liked from rating 4" in data.protocol

    def test_wrong_options_are_named(self, log):
        with pytest.raises(ValueError, match="option of labelled source 'labeled_table' 'lable'; did you mean 'label'"):
            load_labeled("labeled_table", log, lable="label")
        with pytest.raises(ValueError, match="history=0 must be at least 1"):
            load_labeled("labeled_table", log, history=0)
