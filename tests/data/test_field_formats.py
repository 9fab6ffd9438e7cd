"""Small made files in the layouts of published data: sources, or documented options of a general source, read them."""

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.sources import load, load_labeled
from llm4rec_jax.data.splits.protocols import SPLITS
from llm4rec_jax.evaluation.impressions import impression_metrics
from llm4rec_jax.semantic_ids.index_file import load_index
from tests.helpers import mutations

NEWS = "".join(f"N{n}\tsports\tgolf\tTitle {n}\tAbstract {n}\thttps://x/{n}\t[]\t[]\n" for n in range(8))


def behaviors(rows: int = 20) -> str:
    return "".join(
        f"{n + 1}\tU{n % 5}\t11/{11 + n // 12}/2019 {n % 12 or 12}:05:58 {'AM' if n % 24 < 12 else 'PM'}\t"
        f"{' '.join(f'N{(n + k) % 8}' for k in range(n % 4))}\t"
        f"{' '.join(f'N{(n + k) % 8}-{int(k == n % 3)}' for k in range(3))}\n"
        for n in range(rows)
    )


def mind(folder: Path, rows: int = 20) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "news.tsv").write_text(NEWS)
    (folder / "behaviors.tsv").write_text(behaviors(rows))
    return folder


def test_mind_is_labelled_lists(tmp_path):
    data = load_labeled("mind", mind(tmp_path / "train"), test_path=mind(tmp_path / "dev", 4), history=2)
    assert data.items.columns == ["item_id", "title", "abstract", "category", "subcategory"]
    assert [rows.size // 3 for rows in data.parts().values()] == [18, 2, 4]
    # The fourth impression of the file that tests: its history N3 N4 N5 is cut to the last two.
    rows = data.test.take(np.arange(9, 12))
    names = data.items["item_id"]
    assert names.gather(rows.history[0]).to_list() == ["N4", "N5"]
    assert names.gather(rows.target).to_list() == ["N3", "N4", "N5"]
    assert rows.label.tolist() == [1, 0, 0]
    assert len(set(rows.impression.tolist())) == 1
    assert data.users["user_id"][int(rows.user[0])] == "U3"
    assert not set(data.train.impression.tolist()) & set(data.test.impression.tolist())
    alone = load_labeled("mind", tmp_path / "train")
    assert [rows.size // 3 for rows in alone.parts().values()] == [16, 2, 2]


def test_metrics_of_impressions_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 15, 40)
    impressions = np.repeat(np.arange(40), sizes)
    scores, labels = rng.normal(size=len(impressions)), (rng.random(len(impressions)) < 0.3).astype(float)
    labels[impressions == 5] = 0
    want = {"impression_auc": [], "mrr": [], "ndcg@5": [], "ndcg@10": []}
    skipped = 0
    for impression in range(40):
        y, s = labels[impressions == impression], scores[impressions == impression]
        if len(set(y)) < 2:
            skipped += 1
            continue
        want["impression_auc"].append(roc_auc_score(y, s))
        ordered = y[np.argsort(-s)]
        want["mrr"].append((ordered / np.arange(1, len(y) + 1)).sum() / y.sum())
        for k in (5, 10):
            want[f"ndcg@{k}"].append(ndcg_score([y], [s], k=k))
    found = impression_metrics(scores, labels, impressions)
    for name, values in want.items():
        assert found[name] == pytest.approx(np.mean(values)), name
    assert (found["impressions"], found["impressions_skipped"]) == (40 - skipped, skipped)
    # Equal scores: what is clicked ranks last.
    assert impression_metrics([1, 1, 1], [0, 1, 0], [0, 0, 0])["mrr"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="none of 1 impressions"):
        impression_metrics([1, 2], [1, 1], [0, 0])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("N3-1", "N3-2", "behaviors.tsv, line 4: 'N3-2' is not a news id with -0 or -1"),
        ("N3-1", "N33-1", "behaviors.tsv, line 4: news 'N33' is not in news.tsv"),
        ("11/11/2019 1:05:58 AM", "2019-11-11", "line 2: time '2019-11-11' is not of the form"),
    ],
)
def test_impressions_that_cannot_be_right(tmp_path, old, new, message):
    folder = mind(tmp_path)
    (folder / "behaviors.tsv").write_text(behaviors().replace(old, new))
    with pytest.raises(DataError, match=re.escape(message)):
        load_labeled("mind", folder)


def test_amazon_reviews_2023(tmp_path):
    reviews = [
        {"rating": 5.0, "title": "Good &amp; cheap", "text": "…", "images": [], "parent_asin": f"P{n % 3}",
         "user_id": f"U{n % 2}", "timestamp": 1588687728923 + n, "helpful_vote": 0, "verified_purchase": True}
        for n in range(8)
    ]  # fmt: skip
    # Keys of `details` and types of `price` differ from line to line.
    meta = [
        {"main_category": "All Beauty", "title": f"Soap &amp; Co {n}", "average_rating": 4.1, "features": ["mild"],
         "price": [7.99, "from 3", None][n], "details": [{"Brand": "x"}, {"Size": 3}, {}][n], "parent_asin": f"P{n}"}
        for n in range(3)
    ]  # fmt: skip
    for name, rows in (("All_Beauty.jsonl", reviews), ("meta_All_Beauty.jsonl", meta)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "item": "parent_asin", "items_path": tmp_path / "meta_All_Beauty.jsonl", "unescape_html": True,
        "item_columns": {"title": "title", "category": "main_category", "features": "features"},
    }  # fmt: skip
    data = load("table", tmp_path / "All_Beauty.jsonl", rating="rating", timestamp="timestamp", **options)
    assert data.items["title"].to_list() == [f"Soap & Co {n}" for n in range(3)]
    assert data.items["features"].to_list() == [["mild"]] * 3
    assert mutations.rows(data)[7] == ("U1", "P1", 5.0, 1588687728930.0)
    # The benchmark's files, with the split that came with them.
    for part, rows in (("train", reviews[:4]), ("valid", reviews[4:6]), ("test", reviews[6:])):
        keys = ["user_id", "parent_asin", "rating", "timestamp"]
        pl.DataFrame([{**{k: r[k] for k in keys}, "history": "P0 P1"} for r in rows]).write_csv(
            tmp_path / f"All_Beauty.{part}.csv"
        )
    given = load(
        "table", tmp_path / "All_Beauty.train.csv", rating="rating", timestamp="timestamp",
        validation_path=tmp_path / "All_Beauty.valid.csv", test_path=tmp_path / "All_Beauty.test.csv", **options,
    )  # fmt: skip
    split = SPLITS.build("given", given)
    assert (len(split.train), len(split.validation), len(split.test)) == (4, 2, 2)
    assert mutations.rows(given) == mutations.rows(data)


def test_micro_lens_and_pixel_rec(tmp_path):
    (tmp_path / "pairs.csv").write_text("user,item,timestamp\n1,7,1583378629552\n1,8,1583378629553\n2,7,1\n")
    (tmp_path / "titles.csv").write_text('item,title\n7,"A cat, again"\n8,Dogs\n')
    data = load(
        "table", tmp_path / "pairs.csv", user="user", item="item", timestamp="timestamp",
        items_path=tmp_path / "titles.csv",
    )  # fmt: skip
    assert mutations.rows(data)[0] == ("1", "7", None, 1583378629552.0)
    assert data.items["title"].to_list() == ["A cat, again", "Dogs"]
    (tmp_path / "Pixel.csv").write_text("item_id,user_id,timestamp\nv7,u1,1647014400\nv8,u1,1647014401\n")
    (tmp_path / "items.csv").write_text("item_id,title,tag,description\nv7,A cat,Pets,…\nv8,Dogs,Pets,…\n")
    data = load("table", tmp_path / "Pixel.csv", timestamp="timestamp", items_path=tmp_path / "items.csv")
    assert mutations.rows(data) == [("u1", "v7", None, 1647014400.0), ("u1", "v8", None, 1647014401.0)]
    assert data.items.columns == ["item_id", "title", "tag", "description"]


def test_lc_rec(tmp_path):
    (tmp_path / "Toy.inter.json").write_text(json.dumps({"0": [2, 0, 1], "1": [0, 1]}))
    (tmp_path / "Toy.item.json").write_text(
        json.dumps({str(n): {"title": f"Item {n}", "description": ["a", "b"] if n else "c"} for n in range(3)})
    )
    (tmp_path / "Toy.index.json").write_text(json.dumps({str(n): [f"<a_{n}>", "<b_0>"] for n in range(3)}))
    data = load("lc_rec", tmp_path)
    assert mutations.rows(data) == [
        ("0", "2", None, 0.0), ("0", "0", None, 1.0), ("0", "1", None, 2.0),
        ("1", "0", None, 0.0), ("1", "1", None, 1.0),
    ]  # fmt: skip
    assert data.items.rows() == [("0", "Item 0", "c"), ("1", "Item 1", "a b"), ("2", "Item 2", "a b")]
    codes = load_index(tmp_path / "Toy.index.json", data.items["item_id"].to_list()).codes
    assert codes.tolist() == [[0, 0], [1, 0], [2, 0]]
    (tmp_path / "Toy.item.json").unlink()
    assert load("lc_rec", tmp_path / "Toy.inter.json").items.columns == ["item_id"]
    (tmp_path / "Toy.inter.json").write_text(json.dumps({"0": [2, 1.5]}))
    with pytest.raises(DataError, match=r"Toy.inter.json, user '0': \[2, 1.5\] is not a list of item ids"):
        load("lc_rec", tmp_path)


def test_iisan(tmp_path):
    (tmp_path / "am_users.tsv").write_text("A3U\tB00 B01 B00\nA02\tB01 B00\n")
    (tmp_path / "items.tsv").write_text("B00\tManometer &amp; Gauge\nB01\tStethoscope\n")
    data = load(
        "sequences", tmp_path / "am_users.tsv", items_path=tmp_path / "items.tsv", items_header=["item_id", "title"],
        unescape_html=True,
    )  # fmt: skip
    assert data.items.rows() == [("B00", "Manometer & Gauge"), ("B01", "Stethoscope")]
    assert mutations.rows(data)[2:4] == [("A3U", "B00", None, 2.0), ("A02", "B01", None, 0.0)]


def test_yambda_flat_and_sequential(tmp_path):
    flat = [(100, 5, 10), (100, 10, 11), (200, 5, 12)]
    schema = {"uid": pl.UInt32, "timestamp": pl.UInt32, "item_id": pl.UInt32}
    pl.DataFrame(flat, schema, orient="row").with_columns(pl.lit(1, pl.UInt8).alias("is_organic")).write_parquet(
        tmp_path / "listens.parquet"
    )
    options = {"user": "uid", "timestamp": "timestamp"}
    want = [("100", "10", None, 5.0), ("100", "11", None, 10.0), ("200", "12", None, 5.0)]
    assert mutations.rows(load("table", tmp_path / "listens.parquet", **options)) == want
    pl.DataFrame(
        {"uid": [100, 200], "timestamp": [[5, 10], [5]], "item_id": [[10, 11], [12]], "is_organic": [[1, 0], [1]]}
    ).write_parquet(tmp_path / "sequential.parquet")
    assert mutations.rows(load("table", tmp_path / "sequential.parquet", **options)) == want
    wrong = pl.DataFrame({"uid": [1, 2], "timestamp": [[5], [5]], "item_id": [[10], [12, 1]]})
    wrong.write_parquet(tmp_path / "w.parquet")
    with pytest.raises(DataError, match="row 2: the lists item_id, timestamp have the lengths \\(2, 1\\)"):
        load("table", tmp_path / "w.parquet", **options)
