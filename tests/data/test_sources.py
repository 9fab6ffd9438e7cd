import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llm4rec_jax.data import assets
from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.data.sources import SOURCES, load, natural_title, register

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu\ta\t4\t30\nv\tb\t2.5\t10\nu\tb\t1\t20\n"
ITEM = 'item_id:token\ttitle:token_seq\tprice:float\tvector:float_seq\nb\tThe "B\t1.5\t1 2\na\tA\t\t\nc\tC\t3\t4\n'
USER = "user_id:token\tage:token\nv\t30\nu\t40\n"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def atomic(folder: Path, inter: str | bytes = INTER, item: str | bytes | None = ITEM, user: str | None = USER) -> Path:
    for suffix, content in (("inter", inter), ("item", item), ("user", user)):
        if content is not None:
            write(folder / f"toy.{suffix}", content)
    return folder


def rows(dataset: Dataset) -> list[tuple]:
    """The interactions with ids in place of indices."""
    data = dataset.interactions
    columns = [dataset.users["user_id"].to_numpy()[data.user], dataset.items["item_id"].to_numpy()[data.item]]
    columns += [column for column in (data.rating, data.timestamp) if column is not None]
    return [tuple(column[row] for column in columns) for row in range(len(data))]


def says(error: pytest.ExceptionInfo[BaseException], *words: str) -> None:
    for word in words:
        assert word in str(error.value)


class TestMovieLens:
    def test_100k_is_whole_and_mended(self):
        dataset = load("movielens_100k")
        assert (dataset.num_users, dataset.num_items, len(dataset.interactions)) == (943, 1682, 100_000)
        assert dataset.items.schema == {"item_id": pl.String, "title": pl.String, "year": pl.Int32, "genres": pl.String}
        assert dataset.users.columns == ["user_id", "age", "gender", "occupation", "zip_code"]
        by_id = {row[0]: row[1:] for row in dataset.items.iter_rows()}
        assert by_id["1"] == ("Toy Story", 1995, "Animation, Children's, Comedy")
        assert by_id["12"][0] == "The Usual Suspects"
        assert by_id["543"] == ("Les Misérables", 1995, "Drama, Musical")
        assert by_id["267"] == ("unknown", None, "")
        assert by_id["1412"][:2] == ("Land Before Time III: The Time of the Great Giving", 1995)
        assert dataset.items["year"].null_count() == 1
        assert rows(dataset)[0] == ("196", "242", 3, 881250949)
        assert dataset.interactions.timestamp is not None
        assert dataset.interactions.timestamp.dtype == np.int64

    def test_100k_keeps_titles_on_request(self):
        titles = load("movielens_100k", natural_titles=False).items["title"]
        assert titles[11] == "Usual Suspects, The"

    def test_100k_names_the_missing_file(self, tmp_path):
        write(tmp_path / "u.data", "")
        with pytest.raises(FileNotFoundError) as error:
            load("movielens_100k", tmp_path)
        says(error, "ml-100k.inter", "u.data")

    def test_small_reads_the_official_form(self, tmp_path):
        write(
            tmp_path / "movies.csv",
            "movieId,title,genres\n"
            "1,Toy Story (1995),Adventure|Children\n"
            '11,"American President, The (1995)",Comedy|Drama|Romance\n'
            '20,"City of Lost Children, The (Cité des enfants perdus, La) (1995) ",Drama\n'
            "30,Babylon 5,(no genres listed)\n"
            "40,Death Note: Desu nôto (2006–2007),(no genres listed)\n"
            '50,"""Great Performances"" Cats (1998)",Musical\n'
            "60,2001: A Space Odyssey (1968),\n",
        )
        write(tmp_path / "ratings.csv", "userId,movieId,rating,timestamp\n2,11,4.5,964982703\n1,30,3.0,964981247\n")
        dataset = load("movielens_small", tmp_path)
        assert list(dataset.items.iter_rows()) == [
            ("1", "Toy Story", 1995, "Adventure, Children"),
            ("11", "The American President", 1995, "Comedy, Drama, Romance"),
            ("20", "The City of Lost Children (La Cité des enfants perdus)", 1995, "Drama"),
            ("30", "Babylon 5", None, ""),
            ("40", "Death Note: Desu nôto", 2006, ""),
            ("50", '"Great Performances" Cats', 1998, "Musical"),
            ("60", "2001: A Space Odyssey", 1968, ""),
        ]
        assert rows(dataset) == [("2", "11", 4.5, 964982703), ("1", "30", 3, 964981247)]
        assert load("movielens_small", tmp_path, natural_titles=False).items["title"][1] == "American President, The"

    @pytest.mark.parametrize(
        ("title", "natural"),
        [
            ("Usual Suspects, The", "The Usual Suspects"),
            ("Bug's Life, A", "A Bug's Life"),
            ("Enfer, L'", "L'Enfer"),
            ("Star Maker, The (Uomo delle stelle, L')", "The Star Maker (L'Uomo delle stelle)"),
            ("Suriyothai (a.k.a. Legend of Suriyothai, The)", "Suriyothai (a.k.a. The Legend of Suriyothai)"),
            ("Good, the Bad and the Ugly, The", "The Good, the Bad and the Ugly"),
            ("I, Robot", "I, Robot"),
            ("Maybe, Maybe Not", "Maybe, Maybe Not"),
            ("", ""),
        ],
    )
    def test_natural_title(self, title, natural):
        assert natural_title(title) == natural


class TestAtomic:
    def test_reads_all_files(self, tmp_path):
        dataset = load("atomic", atomic(tmp_path))
        assert dataset.name == "toy"
        assert rows(dataset) == [("u", "a", 4, 30), ("v", "b", 2.5, 10), ("u", "b", 1, 20)]
        assert dataset.items.to_dict(as_series=False) == {
            "item_id": ["b", "a", "c"],
            "title": ['The "B', "A", "C"],
            "price": [1.5, None, 3],
            "vector": [[1, 2], None, [4]],
        }
        assert dataset.users.rows() == [("v", "30"), ("u", "40")]

    def test_side_tables_are_optional(self, tmp_path):
        dataset = load("atomic", atomic(tmp_path, item=None, user=None) / "toy.inter", rating=None)
        assert rows(dataset) == [("u", "a", 30), ("v", "b", 10), ("u", "b", 20)]
        assert dataset.items.rows() == [("a",), ("b",)]

    def test_columns_can_have_other_names(self, tmp_path):
        inter = "item:token\tuser:token\nx\tu\ny\tu\n"
        dataset = load("atomic", atomic(tmp_path, inter, None, None), user="user", item="item")
        assert rows(dataset) == [("u", "x"), ("u", "y")]
        with pytest.raises(DataError) as error:
            load("atomic", tmp_path, user="user", item="item", timestamp="time")
        says(error, "toy.inter", "unknown column 'time'", "item, user")

    def test_folder_with_several_files(self, tmp_path):
        folder = tmp_path / "toy"
        atomic(folder)
        write(folder / "toy.test.inter", INTER)
        assert len(load("atomic", folder).interactions) == 3
        (folder / "toy.inter").rename(folder / "other.inter")
        with pytest.raises(FileNotFoundError) as error:
            load("atomic", folder)
        says(error, "toy.inter", "other.inter, toy.item, toy.test.inter", "path of the .inter file")

    def test_histories_are_refused(self, tmp_path):
        path = write(tmp_path / "x.inter", "user_id:token\titem_id_list:token_seq\titem_id:token\nu\ta b\tc\n")
        with pytest.raises(DataError) as error:
            load("atomic", path)
        says(error, "x.inter, line 1", "item_id_list", "source 'sequences'")

    @pytest.mark.parametrize(
        ("inter", "item", "words"),
        [
            (INTER.replace("item_id:", "itemid:"), ITEM, ["toy.inter", "'item_id'", "did you mean 'itemid'", "rating"]),
            (INTER.replace("rating:float", "rating"), ITEM, ["toy.inter, line 1", "'rating'", "name:type"]),
            (INTER + "u\tc\t1\n", ITEM, ["toy.inter, line 5", "3 fields", "has 4", "correct the row"]),
            (INTER + "u\tc\t1\t2\t3\n", ITEM, ["toy.inter, line 5", "5 fields", "has 4", "correct the row"]),
            (INTER + "\nu\tc\t1\t2\n", ITEM, ["toy.inter, line 5", "0 fields"]),
            (INTER + "u\tc\tgood\t1\n", ITEM, ["toy.inter, line 5", "rating 'good' is not a number", "correct it"]),
            (INTER + "u\tc\t1\t\n", ITEM, ["toy.inter, line 5", "timestamp is empty", "remove the row"]),
            (INTER + "u\tc\tnan\t1\n", ITEM, ["toy.inter, line 5", "rating nan is not finite", "correct it"]),
            (INTER + "u\tc\t1e60\t1\n", ITEM, ["toy.inter, line 5", "rating 1e60 is not finite"]),
            (INTER + "u\tc\t1\tinf\n", ITEM, ["toy.inter, line 5", "timestamp inf is not finite"]),
            (INTER + "u\t \t1\t1\n", ITEM, ["toy.inter, line 5", "empty id in column 'item_id'", "fill it in"]),
            (INTER + "u\tz\t1\t1\n", ITEM, ["toy.inter, line 5", "item 'z' is not in", "toy.item", "add the item"]),
            (INTER + "w\ta\t1\t1\n", ITEM, ["toy.inter, line 5", "user 'w' is not in", "toy.user", "add the user"]),
            (INTER, ITEM + "a\tD\t\t\n", ["toy.item, line 5", "duplicate item id 'a'", "line 3", "keep one"]),
            (INTER, ITEM + "\tD\t\t\n", ["toy.item, line 5", "empty id"]),
            (INTER, ITEM + "d\tD\tcheap\t\n", ["toy.item, line 5", "price 'cheap' is not float"]),
            (INTER, ITEM + "d\tD\t1 2\t\n", ["toy.item, line 5", "price '1 2' is not float"]),
            (INTER, ITEM + "d\tD\t1\t1 x\n", ["toy.item, line 5", "vector '1 x' is not float_seq"]),
            (INTER, ITEM.encode() + b"d\tD\xe9\t1\t\n", ["toy.item, line 5", "byte 4", "0xe9", "iconv", "encoding="]),
            (INTER.replace("rating:", "item_id:"), ITEM, ["toy.inter, line 1", "'item_id'", "twice"]),
            ("", ITEM, ["toy.inter is empty"]),
            (INTER.splitlines()[0] + "\n", ITEM, ["toy.inter is empty below its header"]),
        ],
    )
    def test_malformed_files_are_errors(self, tmp_path, inter, item, words):
        with pytest.raises(DataError) as error:
            load("atomic", atomic(tmp_path, inter, item))
        says(error, *words)

    def test_encoding_option(self, tmp_path):
        folder = atomic(tmp_path, item="item_id:token\ttitle:token_seq\na\tÉté\nb\tB\n".encode("latin1"))
        assert load("atomic", folder, encoding="latin1").items["title"][0] == "Été"

    def test_recbole_files_are_read_as_they_are(self):
        dataset = load("atomic", assets.movielens_100k())
        assert dataset.items["movie_title"][11] == "Usual Suspects, The"
        assert len(dataset.interactions) == 100_000


class TestTable:
    CSV = 'who,what,stars,when,name\nu,a,4,3.5,"A, or ""1"""\nv,b,2,1,B\nu,b,1,2,other\n'
    OPTIONS = {"user": "who", "item": "what", "rating": "stars", "timestamp": "when"}  # noqa: RUF012

    def test_csv_without_tables(self, tmp_path):
        path = write(tmp_path / "log.csv", "\ufeff" + self.CSV.replace("\n", "\r\n"))
        dataset = load("table", path, item_columns={"title": "name"}, **self.OPTIONS)
        assert dataset.name == "log"
        assert rows(dataset) == [("u", "a", 4, 3.5), ("v", "b", 2, 1), ("u", "b", 1, 2)]
        assert dataset.interactions.timestamp is not None
        assert dataset.interactions.timestamp.dtype == np.float64
        assert dataset.items.rows() == [("a", 'A, or "1"'), ("b", "B")]
        assert rows(load("table", path, user="who", item="what")) == [("u", "a"), ("v", "b"), ("u", "b")]

    def test_tables_of_items_and_users(self, tmp_path):
        path = write(tmp_path / "log.csv", self.CSV)
        items = write(tmp_path / "items.tsv", "title\twhat\nB\tb\n\ta\nC\tc\n")
        users = write(tmp_path / "users.jsonl", '{"who": "v", "age": 3}\n\n{"who": "u", "age": null}\n')
        dataset = load("table", path, items_path=items, users_path=str(users), **self.OPTIONS)
        assert dataset.items.rows() == [("b", "B"), ("a", ""), ("c", "C")]
        assert dataset.users.rows() == [("v", 3), ("u", None)]
        assert dataset.interactions.item.tolist() == [1, 0, 0]
        named = load("table", path, items_path=items, item_columns={"text": "title"}, **self.OPTIONS)
        assert named.items.columns == ["item_id", "text"]

    def test_all_formats_give_the_same_data(self, tmp_path):
        frame = pl.DataFrame(
            {"user_id": [3, 4, 3], "item_id": [7, 8, 8], "rating": [1.0, 2.0, 3.5], "timestamp": [10, 20, 30]}
        )
        frame.write_csv(tmp_path / "x.csv")
        frame.write_csv(tmp_path / "x.tsv", separator="\t")
        frame.write_parquet(tmp_path / "x.parquet")
        frame.write_ndjson(tmp_path / "x.jsonl")
        prints = {
            load("table", path, rating="rating", timestamp="timestamp").fingerprint for path in tmp_path.iterdir()
        }
        assert len(prints) == 1

    def test_dates_become_seconds(self, tmp_path):
        when = [datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC)]
        path = tmp_path / "x.parquet"
        pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "when": when}).write_parquet(path)
        timestamp = load("table", path, timestamp="when").interactions.timestamp
        assert timestamp is not None
        assert timestamp.tolist() == [1577836800, 1577923200]

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("x.csv", CSV.replace("what", "item"), ["x.csv", "unknown column 'what'", "who, item, stars, when, name"]),
            ("x.csv", CSV.replace("what", "whatt"), ["x.csv", "did you mean 'whatt'"]),
            ("x.csv", CSV + "u,a,1,2\n", ["x.csv, line 5", "4 fields", "has 5", "correct the row"]),
            ("x.csv", CSV + 'u,a,1,2,"open\n', ["x.csv, line 5", "malformed", "quotes"]),
            ("x.csv", CSV + 'u,a,1,2,"two\nlines"\nu,a,x,2,C\n', ["x.csv, line 7", "stars 'x'", "correct it"]),
            ("x.csv", CSV.encode() + b"u,a,1,2,\xff\n", ["x.csv, line 5", "byte 9", "0xff", "iconv"]),
            ("x.csv", "\n\n", ["x.csv is empty"]),
            ("x.jsonl", '{"who":1}\n{"who":\n', ["x.jsonl, line 2", "not JSON", "one JSON object a line"]),
            ("x.jsonl", '{"who":1}\n\n[1]\n', ["x.jsonl, line 3", "not a JSON object"]),
            ("x.jsonl", '{"who":1}\n{"who":{"a":1}}\n', ["x.jsonl", "types of a key differ", "one type"]),
            ("x.jsonl", '{"who":1.5,"what":1}\n', ["x.jsonl", "'who' holds Float64", "cast ids"]),
            ("x.jsonl", '{"who":1,"what":1}\n\n{"who":2}\n', ["x.jsonl, line 3", "empty id in column 'what'"]),
            ("x.jsonl", '{"who":1,"what":1,"stars":true}\n', ["x.jsonl", "'stars' holds Boolean", "give numbers"]),
            ("x.jsonl", "", ["x.jsonl is empty"]),
            ("x.parquet", "no parquet", ["x.parquet is no Parquet file", "correct"]),
            ("x.xlsx", "", ["x.xlsx", "unknown extension '.xlsx'", ".parquet"]),
        ],
    )
    def test_malformed_files_are_errors(self, tmp_path, name, content, words):
        with pytest.raises(DataError) as error:
            load("table", write(tmp_path / name, content), **self.OPTIONS)
        says(error, *words)

    def test_malformed_parquet_rows_are_counted(self, tmp_path):
        path = tmp_path / "x.parquet"
        frame = pl.DataFrame({"user_id": ["u", "v"], "item_id": ["a", "b"], "rating": [1.0, float("nan")]})
        frame.write_parquet(path)
        with pytest.raises(DataError) as error:
            load("table", path, rating="rating")
        says(error, "x.parquet, row 2", "rating nan is not finite")
        frame.clear().write_parquet(path)
        with pytest.raises(DataError, match=r"x.parquet is empty"):
            load("table", path)

    def test_catalogue_errors(self, tmp_path):
        path = write(tmp_path / "log.csv", self.CSV)
        items = write(tmp_path / "items.csv", "what,title\na,A\n")
        with pytest.raises(DataError) as error:
            load("table", path, items_path=items, **self.OPTIONS)
        says(error, "log.csv, line 3", "item 'b' is not in", "items.csv", "2 such rows", "add the item")
        write(items, "what,title\na,A\nb,B\na,C\n")
        with pytest.raises(DataError) as error:
            load("table", path, items_path=items, **self.OPTIONS)
        says(error, "items.csv, line 4", "duplicate item id 'a'", "first in line 2")
        write(items, "what,item_id\na,A\n")
        with pytest.raises(DataError, match=r"items.csv: a feature is called item_id.*rename"):
            load("table", path, items_path=items, **self.OPTIONS)


class TestSequences:
    def test_lines_become_interactions_in_order(self, tmp_path):
        path = write(tmp_path / "toy.txt", "u 3 1 2\nv\t1  3 \n")
        dataset = load("sequences", path)
        assert rows(dataset) == [("u", "3", 0), ("u", "1", 1), ("u", "2", 2), ("v", "1", 0), ("v", "3", 1)]
        assert dataset.interactions.rating is None
        items = write(tmp_path / "items.tsv", "id\tasin\ttext\n1\tA\tone\n2\tB\ttwo\n3\tC\tthree\n4\tD\tfour\n")
        dataset = load("sequences", path, items_path=items, item="id", item_columns={"title": "text"})
        assert dataset.items.rows()[2] == ("3", "three")
        assert dataset.interactions.item.tolist() == [2, 0, 1, 0, 2]

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("u 1 2\nv\n", ["toy.txt, line 2", "malformed row", "complete or remove"]),
            ("u 1 2\n\nv 1\n", ["toy.txt, line 2", "malformed row"]),
            ("u 1 2\nv 1\nu 3\n", ["toy.txt, line 3", "duplicate user id 'u'", "first in line 1"]),
            ("u 1 2\nv 1 9 2\n", ["toy.txt, line 2", "item '9' is not in", "items.csv", "add the item"]),
            (b"u 1 2\nv \xe9\n", ["toy.txt, line 2", "byte 3", "iconv"]),
            ("", ["toy.txt is empty"]),
        ],
    )
    def test_malformed_files_are_errors(self, tmp_path, content, words):
        items = write(tmp_path / "items.csv", "item_id\n1\n2\n3\n")
        with pytest.raises(DataError) as error:
            load("sequences", write(tmp_path / "toy.txt", content), items_path=items)
        says(error, *words)


class TestLoad:
    def test_unknown_source_names_the_nearest(self):
        with pytest.raises(ValueError, match=r"unknown source 'movielens100k'; did you mean 'movielens_100k'.*table"):
            load("movielens100k")

    def test_unknown_option_lists_the_accepted(self):
        with pytest.raises(ValueError, match=r"option of source 'movielens_100k' 'natural_title'.*natural_titles"):
            load("movielens_100k", natural_title=True)

    def test_missing_path(self, tmp_path):
        with pytest.raises(ValueError, match="source 'table' needs a path"):
            load("table")
        write(tmp_path / "there.csv", "")
        with pytest.raises(FileNotFoundError) as error:
            load("table", tmp_path / "log.csv")
        says(error, "log.csv does not exist", "there.csv", "Correct the path")
        with pytest.raises(FileNotFoundError, match=r"there\.csv"):
            load("atomic", tmp_path / "no" / "folder")

    def test_sources_can_be_added(self):
        @register("toy")
        def load_toy(path: Path | None = None, *, flag: bool = False) -> Dataset:
            return load("movielens_100k", natural_titles=flag)

        try:
            assert load("toy", flag=True).num_users == 943
            with pytest.raises(ValueError, match="registered already"):
                register("toy")(load_toy)
        finally:
            del SOURCES["toy"]

    def test_data_needs_no_jax(self):
        code = (
            "import sys; from llm4rec_jax.data import filters, sources, splits; "
            "assert not {'jax', 'tensorflow', 'tensorflow_datasets', 'torch'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
