"""Files as they are found: separators, quotes, headers, encodings, compression, JSON, dates and ids of many kinds."""

import gzip
import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.data.sources import load

CSV = "user_id,item_id,rating,timestamp\nu,a,4,30\nv,b,2.5,10\nu,b,1,20\n"
WANTED = [("u", "a", 4, 30), ("v", "b", 2.5, 10), ("u", "b", 1, 20)]
COLUMNS: dict[str, Any] = {"rating": "rating", "timestamp": "timestamp"}
NAMES = ["user_id", "item_id", "rating", "timestamp"]


def rows(dataset: Dataset) -> list[tuple[Any, ...]]:
    data = dataset.interactions
    columns = [dataset.users["user_id"].to_numpy()[data.user], dataset.items["item_id"].to_numpy()[data.item]]
    columns += [column for column in (data.rating, data.timestamp) if column is not None]
    return [tuple(column[row] for column in columns) for row in range(len(data))]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


class TestDelimited:
    @pytest.mark.parametrize(
        ("name", "content", "options"),
        [
            ("X.CSV", CSV, {}),
            ("x.tsv", CSV.replace(",", "\t"), {}),
            ("x.txt", CSV.replace(",", "\t"), {}),
            ("x.csv", CSV.replace(",", ";"), {"separator": ";"}),
            ("x.dat", CSV.replace(",", "::"), {}),
            ("x.dat", CSV.split("\n", 1)[1].replace(",", "::"), {"columns": NAMES}),
            ("x.csv", CSV.split("\n", 1)[1], {"columns": NAMES}),
            ("x.log", CSV.replace(",", " | "), {"separator": " | "}),
            ("x.csv", CSV.replace("v", "é").encode("latin-1"), {"encoding": "latin-1"}),
        ],
    )
    def test_is_read(self, tmp_path, name, content, options):
        wanted = [tuple("é" if cell == "v" and "encoding" in options else cell for cell in row) for row in WANTED]
        assert rows(load("table", write(tmp_path / name, content), **COLUMNS, **options)) == wanted

    def test_quotes_of_a_tsv_are_ordinary_characters(self, tmp_path):
        log = write(tmp_path / "log.csv", "user_id,item_id\nu,a\nu,b\nu,c\n")
        items = write(tmp_path / "items.tsv", 'item_id\ttitle\na\t"Weird Al" Yankovic\nb\t1" Foam\nc\t"open\n')
        titles = load("table", log, items_path=items).items["title"].to_list()
        assert titles == ['"Weird Al" Yankovic', '1" Foam', '"open']
        log = write(tmp_path / "log.tsv", 'user_id\titem_id\ttitle\nu\ta\t"one ""1"""\n')
        options = {"item_columns": {"title": "title"}}
        assert load("table", log, **options, quoted=True).items["title"][0] == 'one "1"'

    def test_wrong_options_are_named(self, tmp_path):
        path = write(tmp_path / "x.csv", CSV)
        for options, message in (
            ({"columns": ["user_id", "item_id"]}, "line 1: malformed row of 4 fields where there are columns for 2"),
            ({"encoding": "utf9"}, "unknown encoding 'utf9': give one that Python knows"),
            ({"separator": "::", "quoted": True}, "quoted fields need a separator of one character"),
            ({"separator": ""}, "unknown column 'user_id'"),
        ):
            if options != {"separator": ""}:
                with pytest.raises(ValueError, match=message):
                    load("table", path, **options)
        with pytest.raises(ValueError, match="quoted= and columns= are for delimited text"):
            load("table", write(tmp_path / "x.json", "[]"), quoted=True)

    def test_lines_without_a_header_are_counted_from_the_first(self, tmp_path):
        path = write(tmp_path / "x.dat", "u::a::x::1\n")
        with pytest.raises(DataError, match=r"x.dat, line 1: rating 'x' is not a number"):
            load("table", path, columns=NAMES, **COLUMNS)


class TestCompressed:
    def test_gzip_and_zstd(self, tmp_path):
        write(tmp_path / "x.csv.gz", gzip.compress(CSV.encode()))
        dataset = load("table", tmp_path / "x.csv.gz", **COLUMNS)
        assert rows(dataset) == WANTED
        assert dataset.name == "x"
        if shutil.which("zstd"):
            packed = subprocess.run(["zstd", "-c"], input=CSV.encode(), capture_output=True, check=True).stdout
            assert rows(load("table", write(tmp_path / "x.CSV.ZST", packed), **COLUMNS)) == WANTED

    def test_damage_is_named(self, tmp_path):
        whole = gzip.compress(CSV.encode())
        for content in (whole[:-6], whole[:20] + b"xx" + whole[22:], b"no gzip"):
            with pytest.raises(DataError, match=r"x.csv.gz is a damaged gzip file"):
                load("table", write(tmp_path / "x.csv.gz", content), **COLUMNS)
        with pytest.raises(DataError, match=r"x.csv.zst"):
            load("table", write(tmp_path / "x.csv.zst", b"\x28\xb5\x2f\xfd damaged"), **COLUMNS)


class TestJson:
    def test_lines_and_arrays(self, tmp_path):
        records = [dict(zip(NAMES, row, strict=True)) for row in WANTED]
        lines = write(tmp_path / "x.jsonl", "\n\n".join(map(json.dumps, records)))
        array = write(tmp_path / "x.json", json.dumps(records, indent=2))
        as_json = write(tmp_path / "y.json", "\n".join(map(json.dumps, records)))
        for path in (lines, array, as_json):
            assert rows(load("table", path, **COLUMNS)) == WANTED

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (r'{"user_id":"a","item_id":"1","title":"x \ud83d y"}', "half of a character"),
            (r'{"user_id":"a","item_id":"1","title":"x \ude00 y"}', "half of a character"),
            ('{"user_id":"a","user_id":"b","item_id":"1","title":"x"}', "key 'user_id' occurs twice"),
            ('{"user_id":"a","item_id":"1","title":"x","t":{"k":1,"k":2}}', "key 'k' occurs twice"),
            ('{"user_id":"a","item_id":"1","title":"x","price":NaN}', "NaN is not JSON; write null"),
            ('{"user_id":1,"item_id":"1","title":"x"}', r"'user_id' is 1 \(number\), but 'z' \(text\) in line 1"),
            ('{"user_id":true,"item_id":"1","title":"x"}', "'user_id' is True"),
            (
                '{"user_id":"a","item_id":"1","title":"x","t":36893488147419103232}',
                "line 3: t 36893488147419103232 has more digits than 64 bits hold",
            ),
        ],
    )
    def test_what_readers_disagree_about_is_refused_by_line(self, tmp_path, line, message):
        first = '{"user_id":"z","item_id":"2","title":"ok"}\n\n'
        path = write(tmp_path / "x.jsonl", first + line + "\n")
        with pytest.raises(DataError, match=message) as error:
            load("table", path, item_columns={"title": "title"})
        assert "x.jsonl" in str(error.value)

    def test_a_pair_of_surrogates_is_a_character(self, tmp_path):
        path = write(tmp_path / "x.jsonl", r'{"user_id":"z","item_id":"2","title":"\ud83d\ude00"}')
        assert load("table", path, item_columns={"title": "title"}).items["title"][0] == "😀"

    def test_large_whole_numbers_beside_fractions_are_refused(self, tmp_path):
        path = write(
            tmp_path / "x.jsonl",
            '{"user_id":"z","item_id":"2","timestamp":0.5}\n{"user_id":"z","item_id":"2","timestamp":9007199254740993}',
        )
        with pytest.raises(DataError, match="line 2: timestamp 9007199254740993 has more digits than a float"):
            load("table", path, timestamp="timestamp")


class TestParquet:
    def test_binary_text_is_text(self, tmp_path):
        path = tmp_path / "x.parquet"
        title = [b"Red lamp", "Amélie".encode()]
        pl.DataFrame({"user_id": [b"a", b"a"], "item_id": ["1", "2"], "title": title}).write_parquet(path)
        dataset = load("table", path, item_columns={"title": "title"})
        assert item_texts(dataset.items, "{title}") == ["Red lamp", "Amélie"]
        assert dataset.users["user_id"].to_list() == ["a"]

    @pytest.mark.parametrize(("cell", "kind"), [({"k": "v"}, "a record"), (b"\xff\xfe", "binary data")])
    def test_what_is_no_text_is_refused(self, tmp_path, cell, kind):
        path = tmp_path / "x.parquet"
        pl.DataFrame({"user_id": ["a"], "item_id": ["1"], "info": [cell]}).write_parquet(path)
        items = load("table", path, item_columns={"info": "info"}).items
        with pytest.raises(DataError, match=f"item '1': field 'info' holds {kind}"):
            item_texts(items, "{info}")

    @pytest.mark.parametrize(
        "times",
        [
            pl.Series([1_500_000_000_000_000_002, 1_500_000_000_000_000_001, 0]).cast(pl.Datetime("ns")),
            pl.Series([9007199254740993, 9007199254740992, 0]),
            pl.Series([9007199254740993, 9007199254740992, 0], dtype=pl.UInt64),
            pl.Series([Decimal(9007199254740993), Decimal(9007199254740992), Decimal(0)]),
        ],
    )
    def test_close_times_keep_their_order(self, tmp_path, times):
        path = tmp_path / "x.parquet"
        pl.DataFrame({"user_id": ["u"] * 3, "item_id": list("abc"), "timestamp": times}).write_parquet(path)
        timestamp = load("table", path, timestamp="timestamp").interactions.timestamp
        assert timestamp is not None
        assert np.argsort(timestamp).tolist() == [2, 1, 0]


class TestNumbers:
    def test_digits_that_a_float_loses_are_refused(self, tmp_path):
        path = write(tmp_path / "x.csv", "user_id,item_id,timestamp\nu,a,0.5\nu,b,9007199254740993\n")
        with pytest.raises(DataError, match="line 3: timestamp 9007199254740993 has more digits than a float holds"):
            load("table", path, timestamp="timestamp")

    @pytest.mark.parametrize(
        "texts",
        [
            ["2017-07-23", "2017-07-22"],
            ["2017-07-23T02:40:00Z", "2017-07-23T02:39:59.5Z"],
            ["2017-07-23 02:40:00", "2017-07-23 04:39:00+02:00"],
        ],
    )
    def test_iso_dates_of_text_are_seconds(self, tmp_path, texts):
        path = write(tmp_path / "x.csv", f"user_id,item_id,timestamp\nu,a,{texts[0]}\nu,b,{texts[1]}\n")
        timestamp = load("table", path, timestamp="timestamp").interactions.timestamp
        assert timestamp is not None
        moments = [datetime.fromisoformat(text) for text in texts]
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        wanted = [((m if m.tzinfo else m.replace(tzinfo=UTC)) - epoch) / timedelta(seconds=1) for m in moments]
        assert timestamp.tolist() == wanted

    @pytest.mark.parametrize("wrong", ["2017-13-01", "23.07.2017", "2017-07-23T02:40:00.1234567Z", "17"])
    def test_other_dates_are_refused_by_line(self, tmp_path, wrong):
        path = write(tmp_path / "x.csv", f"user_id,item_id,timestamp\nu,a,2017-07-23\nu,b,{wrong}\n")
        with pytest.raises(DataError, match=rf"x.csv, line 3: timestamp '{wrong}' is neither a number nor an ISO date"):
            load("table", path, timestamp="timestamp")


class TestIds:
    def test_surrounding_spaces_are_no_part_of_an_id(self, tmp_path):
        path = write(tmp_path / "x.csv", "user_id,item_id\nu ,a\nu,\u00a0b\n u,a\n")
        dataset = load("table", path)
        assert dataset.users["user_id"].to_list() == ["u"]
        assert dataset.items["item_id"].to_list() == ["a", "b"]
        items = write(tmp_path / "items.csv", "item_id\na\nb\na \n")
        with pytest.raises(DataError, match=r"items.csv, line 4: duplicate item id 'a', first in line 2"):
            load("table", path, items_path=items)

    def test_whole_numbers_as_floats_name_their_remedy(self, tmp_path):
        path = write(tmp_path / "x.csv", "user_id,item_id\nu,48\nu,48.0\n")
        with pytest.raises(DataError, match=r"line 3: id '48.0' stands beside '48' in column 'item_id'; write ids as"):
            load("table", path)
        write(path, "user_id,item_id\nu,48.0\n")
        items = write(tmp_path / "items.csv", "item_id\n48\n")
        with pytest.raises(
            DataError, match=r"item '48.0' is not in .*; '48' is, so write the ids of both files as whole"
        ):
            load("table", path, items_path=items)

    def test_a_header_of_sequences_is_no_user(self, tmp_path):
        path = write(tmp_path / "x.txt", "user_id item_id_list\nu 1 2\nv 2\n")
        with pytest.raises(DataError, match=r"line 1: 'user_id' looks like the header of the file.*give header=True"):
            load("sequences", path)
        assert rows(load("sequences", path, header=True)) == [("u", "1", 0), ("u", "2", 1), ("v", "2", 0)]
        write(path, "user_id x\nu 1 2\nv\n")
        with pytest.raises(DataError, match=r"x.txt, line 3: malformed row"):
            load("sequences", path, header=True)


class TestItems:
    def test_the_id_column_of_a_side_table_may_have_another_name(self, tmp_path):
        path = write(tmp_path / "x.csv", CSV)
        items = write(tmp_path / "items.csv", "asin,title\na,A\nb,B\n")
        users = write(tmp_path / "users.csv", "who,age\nv,3\nu,4\n")
        dataset = load("table", path, items_path=items, users_path=users, item_key="asin", user_key="who")
        assert dataset.items.rows() == [("a", "A"), ("b", "B")]
        assert dataset.users.rows() == [("v", "3"), ("u", "4")]

    def test_a_text_for_items_that_have_none(self, tmp_path):
        path = write(tmp_path / "x.csv", CSV)
        items = write(tmp_path / "items.csv", "item_id,brand,title\na,,A\nb,,\n")
        dataset = load("table", path, items_path=items, no_text="unnamed")
        assert dataset.items.rows() == [("a", "", "A"), ("b", "", "unnamed")]
        with pytest.raises(DataError, match="has no text column for no_text"):
            load("table", path, no_text="unnamed")

    def test_html_entities_become_characters_on_request(self, tmp_path):
        items = write(tmp_path / "items.csv", "item_id,title\na,R&amp;B &quot;6&quot;\nb,B\n")
        path = write(tmp_path / "x.csv", CSV)
        assert load("table", path, items_path=items, unescape_html=True).items["title"][0] == 'R&B "6"'
        assert load("table", path, items_path=items).items["title"][0] == "R&amp;B &quot;6&quot;"

    def test_whole_numbers_written_as_floats_lose_their_point(self):
        items = pl.DataFrame({"title": ["Heat", "Big"], "year": ["1995.0", None], "price": ["1.0", "2.5"]})
        assert item_texts(items, "{title} ({year}), {price}") == ["Heat (1995), 1.0", "Big, 2.5"]
        assert item_texts(items, "{title} ({year})", slice(1, 2)) == ["Big"]


def test_movielens_1m_reads_the_official_form(tmp_path):
    write(tmp_path / "ratings.dat", "1::2::5::978300760\n2::1::3::978302109\n")
    write(tmp_path / "users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n")
    write(
        tmp_path / "movies.dat",
        "1::Misérables, Les (1995)::Drama|Musical\n2::Heat: a::b (1995)::Action\n".replace("a::b", "a b").encode(
            "latin-1"
        ),
    )
    dataset = load("movielens_1m", tmp_path)
    assert rows(dataset) == [("1", "2", 5, 978300760), ("2", "1", 3, 978302109)]
    assert dataset.items.rows() == [("1", "Les Misérables", 1995, "Drama, Musical"), ("2", "Heat: a b", 1995, "Action")]
    assert dataset.users.columns == ["user_id", "gender", "age", "occupation", "zip_code"]
