"""Numbers, categories and vectors as arrays: fitted to training rows, beside other implementations."""

import re

import numpy as np
import polars as pl
import pytest
from sklearn.preprocessing import MultiLabelBinarizer, QuantileTransformer, StandardScaler

from llm4rec_jax.data.features import categorical, numeric, vectors  # noqa: F401  (they register themselves)
from llm4rec_jax.data.features.columns import FEATURES, Rows, fit
from llm4rec_jax.data.interactions import DataError

RNG = np.random.default_rng(0)
N = 60
TRAINED = np.arange(N) < 40
NUMBERS = np.round(RNG.lognormal(size=N), 1)  # some are equal


def rows(**columns) -> Rows:
    table = pl.DataFrame({"item_id": [f"i{n}" for n in range(len(next(iter(columns.values()))))], **columns})
    return Rows(table, np.arange(len(table)) < len(table) * 2 / 3, "item")


@pytest.mark.parametrize("transform", ["standardise", "log", "quantiles"])
def test_numbers_are_scaled_as_scikit_learn_scales_them(transform):
    before = {
        "standardise": lambda x: x,
        "log": np.log1p,
        "quantiles": QuantileTransformer(n_quantiles=40).fit(NUMBERS[TRAINED, None]).transform,
    }[transform](NUMBERS[:, None])
    want = StandardScaler().fit(before[TRAINED]).transform(before)[:, 0]
    feature = fit(rows(price=NUMBERS), "price", {"transform": transform})
    np.testing.assert_allclose(feature.column.values[:, 0], want, atol=1e-5)
    assert not feature.column.values[:, 1].any()
    assert feature.column.present.all()


def test_what_is_not_trained_on_does_not_change_the_fit():
    other = np.where(TRAINED, NUMBERS, 1e6)
    assert fit(rows(price=other), "price", {}).fitted == fit(rows(price=NUMBERS), "price", {}).fitted
    words = ["a", "b"] * 20 + ["c"] * 20
    feature = fit(rows(brand=words), "brand", {})
    assert feature.fitted["values"] == ["a", "b"]
    assert feature.column.values[40:].tolist() == [[0]] * 20
    assert feature.column.present.all()


def test_a_missing_number_is_a_flag_and_a_missing_category_is_masked():
    feature = fit(rows(price=["1", "", "3.5", None, "2", "9"]), "price", {"kind": "numeric"})
    assert feature.column.values[:, 1].tolist() == [0, 1, 0, 1, 0, 0]
    assert feature.column.values[[1, 3], 0].tolist() == [0, 0]
    feature = fit(rows(brand=["a", " ", None, "b", "a", "z"]), "brand", {})
    assert feature.column.present.tolist() == [True, False, False, True, True, True]


def test_several_categories_are_those_of_scikit_learn():
    words = np.array(["Drama", "Crime", "War", "Noir"])
    cells = [list(RNG.choice(words[: 3 if trained else 4], RNG.integers(0, 4), replace=False)) for trained in TRAINED]
    binarizer = MultiLabelBinarizer().fit([cell for cell, trained in zip(cells, TRAINED, strict=True) if trained])
    known = [[word for word in cell if word in binarizer.classes_] for cell in cells]
    as_text = fit(rows(genres=["|".join(cell) for cell in cells]), "genres", {"separator": "|"})
    as_lists = fit(rows(genres=cells), "genres", {})
    for feature in (as_text, as_lists):
        assert feature.fitted["values"] == binarizer.classes_.tolist()
        made = np.stack([(feature.column.values == k + 1).any(axis=1) for k in range(3)], axis=1)
        np.testing.assert_array_equal(made, binarizer.transform(known).astype(bool))
    counted = fit(rows(genres=["a", "a", "b", "c"]), "genres", {"min_count": 2})
    assert counted.column.values.ravel().tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("form", ["npz", "npy", "npy with ids", "parquet"])
def test_vectors_are_found_by_id(form, tmp_path):
    values = RNG.normal(size=(5, 3)).astype(np.float32)
    names = ["3", "0", "9", "1", "2"]
    options = {"path": str(tmp_path / f"v.{form.split()[0]}")}
    if form == "npz":
        np.savez(options["path"], ids=np.array(names), vectors=values)
    elif form == "npy":
        np.save(options["path"], values[[1, 3, 4, 0]])
    elif form == "npy with ids":
        np.save(options["path"], values)
        (tmp_path / "ids.txt").write_text("\n".join(names) + "\n")
        options["ids_path"] = str(tmp_path / "ids.txt")
    else:
        pl.DataFrame({"item_id": names, "vector": values.tolist()}).write_parquet(options["path"])
    table = pl.DataFrame({"item_id": [str(n) for n in range(6)]})
    trained = np.arange(6) != 3
    feature = fit(Rows(table, trained, "item"), "image", {"kind": "vectors", **options})
    assert feature.column.present.tolist() == [True] * 4 + [False] * 2
    want = StandardScaler().fit(values[[1, 3, 4]]).transform(values[[1, 3, 4, 0]])
    np.testing.assert_allclose(feature.column.values, np.concatenate([want, np.zeros((2, 3))]), atol=1e-5)


def save(tmp_path, **arrays):
    np.savez(tmp_path / "v.npz", **arrays)
    return {"kind": "vectors", "path": str(tmp_path / "v.npz")}


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        (["1", "x", "2"], {"kind": "numeric"}, "item 'i1': column 'x' is no finite number"),
        ([1.0, np.inf, 2.0], {}, "item 'i1': column inf is no finite number"),
        ([1.0, 1.0, 2.0], {}, "fewer than two different numbers in training"),
        ([[1.5], [2.5], [3.5]], {}, "holds List(Float64) and no categories"),
        ([[1], [2], [3]], {"kind": "numeric"}, "holds List(Int64) and no numbers"),
        (["", "", "a"], {}, "no value in 1 or more training rows"),
        ([1, 2, 3], {"kind": "nummeric"}, "unknown kind of feature 'nummeric'; did you mean 'numeric'?"),
        ([1, 2, 3], {"bin": 3}, "option of kind of feature 'numeric': 'bin'; did you mean 'bins'?"),
        ([1, 2, 3], {"transform": "logs"}, "unknown transform of the numeric feature 'column' 'logs'"),
        ([1, 2, 3], {"column": "colum"}, "unknown item column 'colum'; did you mean 'column'?"),
    ],
)
def test_columns_that_cannot_be_read(column, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(rows(column=column), "column", options)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": ["i0", "i1"], "vectors": np.zeros((3, 2))}, "shape (3, 2) for 2 ids"),
        ({"ids": ["i0", "i0"], "vectors": np.zeros((2, 2))}, "item 'i0' has two vectors"),
        ({"ids": ["i0", "i1"], "vectors": np.full((2, 2), np.nan)}, "the vector of item 'i0' is not finite"),
        ({"ids": ["7", "8"], "vectors": np.zeros((2, 2))}, "a vector for no item of training; its ids are 7, 8"),
        ({"names": ["i0"], "vectors": np.zeros((1, 2))}, "is no .npy file of numbers, or .npz file with arrays"),
    ],
)
def test_files_of_vectors_that_cannot_be_read(arrays, message, tmp_path):
    with pytest.raises(DataError, match=re.escape(message)):
        fit(rows(price=NUMBERS), "image", save(tmp_path, **arrays))


def test_a_kind_of_ones_own_is_one_function(monkeypatch):
    monkeypatch.setitem(FEATURES, "length", lambda rows, column: rows.column(column).str.len_chars().to_list())
    assert fit(rows(title=["ab", "c"]), "title", {"kind": "length"}) == [2, 1]
