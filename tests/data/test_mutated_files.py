"""Files that were damaged at random: read as a plain reader reads them, or refused by file and row."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest

from llm4rec_jax.data.interactions import DataError, Dataset, Interactions
from llm4rec_jax.data.labeled import LabeledData
from llm4rec_jax.data.sources import load, load_labeled
from tests.data.test_field_formats import NEWS, behaviors
from tests.data.test_published_sources import WINDOW
from tests.data.test_published_sources import lines as unisrec_lines
from tests.helpers import mutations
from tests.helpers.mutations import delimited, plain

EVENTS = [(f"u{n % 4}", f"i{n % 7}", 1 + n % 5 / 2, 1000 + n, f"Title, {n % 7}") for n in range(24)]
NAMES = ("user_id", "item_id", "rating", "timestamp", "title")
COLUMNS = {"rating": "rating", "timestamp": "timestamp", "item_columns": {"title": "title"}}
INTER = "\n".join(
    ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *("\t".join(map(str, e[:4])) for e in EVENTS)]
)
USERS = "user_id:token\tage:token\n" + "".join(f"u{n}\t{20 + n}\n" for n in range(4))
SEQUENCES = "".join(f"{u} {' '.join(str((u * 3 + n) % 7 + 1) for n in range(6))}\n" for u in range(8))


class Case(NamedTuple):
    """Files, what parts fields in them, how the project loads their folder, and how a plain reader does."""

    files: dict[str, str | bytes]
    separator: bytes | None
    load: Callable[[Path], Dataset]
    plain: Callable[[Path], list[tuple[Any, ...]]] | None


def _table(separator: str) -> str:
    quoted = (
        f'{user}{separator}{item}{separator}{r}{separator}{t}{separator}"{title}"' for user, item, r, t, title in EVENTS
    )
    return "\n".join([separator.join(NAMES), *quoted, ""])


def _parquet() -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(EVENTS, schema=NAMES, orient="row").write_parquet(buffer)
    return buffer.getvalue()


def _sequential() -> bytes:
    buffer = io.BytesIO()
    rows = {"uid": [1, 2, 3], "item_id": [[7, 8], [8], [9, 7, 8]], "timestamp": [[1, 2], [3], [4, 5, 6]]}
    pl.DataFrame(rows).write_parquet(buffer)
    return buffer.getvalue()


def _clicks(data: LabeledData) -> Dataset:
    rows = data.train
    return Dataset(data.name, Interactions(rows.user, rows.target, rows.label), data.items, data.users)


def _atomic(folder: Path, name: str) -> list[tuple[Any, ...]]:
    records = delimited(folder / name, "\t", quoted=False)
    return plain([{header.rpartition(":")[0]: value for header, value in record.items()} for record in records])


CASES = {
    "csv": Case(
        {"d.csv": _table(",")}, b",",
        lambda f: load("table", f / "d.csv", **COLUMNS), lambda f: plain(delimited(f / "d.csv", ",", quoted=True)),
    ),
    "tsv": Case(
        {"d.tsv": _table("\t")}, b"\t",
        lambda f: load("table", f / "d.tsv", **COLUMNS, quoted=True),
        lambda f: plain(delimited(f / "d.tsv", "\t", quoted=True)),
    ),
    "jsonl": Case(
        {"d.jsonl": "".join(json.dumps(dict(zip(NAMES, event, strict=True))) + "\n" for event in EVENTS)}, b",",
        lambda f: load("table", f / "d.jsonl", **COLUMNS), lambda f: plain(mutations.json_lines(f / "d.jsonl")),
    ),
    "parquet": Case(
        {"d.parquet": _parquet()}, None,
        lambda f: load("table", f / "d.parquet", **COLUMNS), lambda f: plain(mutations.parquet(f / "d.parquet")),
    ),
    "atomic": Case(
        {
            "t.inter": INTER,
            "t.item": "item_id:token\ttitle:token_seq\tprice:float\tvector:float_seq\n"
            + "".join(f"i{n}\tThe {n}\t{n}.5\t1 {n}\n" for n in range(7)),
            "t.user": USERS,
        }, b"\t",
        lambda f: load("atomic", f / "t.inter"), lambda f: _atomic(f, "t.inter"),
    ),
    "sequences": Case(
        {"s.txt": SEQUENCES}, b" ",
        lambda f: load("sequences", f / "s.txt"), lambda f: mutations.sequences(f / "s.txt"),
    ),
    "s3rec": Case(
        {
            "Beauty_sequences.txt": SEQUENCES,
            "Beauty_items.tsv": "s3rec_item_id\tasin\tidgenrec_text\n"
            + "".join(f"{n + 1}\tB{n}\ttext {n}\n" for n in range(7)),
        }, b"\t",
        lambda f: load("s3rec", f), lambda f: mutations.sequences(f / "Beauty_sequences.txt"),
    ),
    "movielens_small": Case(
        {
            "movies.csv": "movieId,title,genres\n"
            + "".join(f'{n},"Film {n}, The (199{n})",Comedy|Drama\n' for n in range(7)),
            "ratings.csv": "userId,movieId,rating,timestamp\n"
            + "".join(f"{user[1:]},{item[1:]},{rating},{time}\n" for user, item, rating, time, _ in EVENTS),
        }, b",",
        lambda f: load("movielens_small", f),
        lambda f: plain(delimited(f / "ratings.csv", ",", quoted=True), "userId", "movieId"),
    ),
    "movielens_100k": Case(
        {
            "ml-100k.inter": INTER,
            "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
            + "".join(f"i{n}\tFilm {n}, The\t199{n}\tComedy Drama\n" for n in range(7)),
            "ml-100k.user": USERS,
        }, b"\t",
        lambda f: load("movielens_100k", f), lambda f: _atomic(f, "ml-100k.inter"),
    ),
    # Its files repeat one another: what is read is what the files of no mutation hold, or a line that agrees with all.
    "unisrec": Case(
        {
            **{f"Toy.{part}.inter": "\n".join(rows) + "\n" for part, rows in unisrec_lines().items()},
            "Toy.text": "item_id:token\ttext:token_seq\n" + "".join(f'B{n}\ttext {n}, "5\n' for n in (2, 0, 1, 3, 4)),
            "Toy.item2index": "".join(f"B{n}\t{n}\n" for n in range(5)),
            "Toy.user2index": "UA\t0\nUB\t1\n",
        }, b"\t",
        lambda f: load("unisrec", f, window=WINDOW), None,
    ),
    "lc_rec": Case(
        {
            "t.inter.json": json.dumps({f"u{u}": [(u * 3 + n) % 7 for n in range(6)] for u in range(8)}),
            "t.item.json": json.dumps({str(n): {"title": f"Item {n}"} for n in range(7)}),
        }, b",",
        lambda f: load("lc_rec", f),
        lambda f: [
            (user.strip(), str(item).strip(), None, float(at))
            for user, items in json.loads(mutations.text_of(f / "t.inter.json")).items()
            for at, item in enumerate(items)
        ],
    ),
    "iisan": Case(
        {"users.tsv": SEQUENCES.replace(" ", "\t", 1), "items.tsv": "".join(f"{n + 1}\tItem {n}\n" for n in range(7))},
        b"\t",
        lambda f: load(
            "sequences", f / "users.tsv", items_path=f / "items.tsv", items_header=["item_id", "title"]
        ),
        lambda f: mutations.sequences(f / "users.tsv"),
    ),
    "yambda": Case(
        {"d.parquet": _sequential()}, None,
        lambda f: load("table", f / "d.parquet", user="uid", timestamp="timestamp"),
        lambda f: [
            (str(row["uid"]), str(item), None, float(time))
            for row in mutations.parquet(f / "d.parquet")
            for item, time in zip(row["item_id"], row["timestamp"], strict=True)
        ],
    ),
    "mind": Case(
        {"news.tsv": NEWS, "behaviors.tsv": behaviors()}, b"\t",
        lambda f: _clicks(load_labeled("mind", f)), None,
    ),
}  # fmt: skip

# Faults of a whole file, or of its header, which no row can be named for.
OF_THE_FILE = re.compile(
    r"is empty|Parquet|unknown column|has no (item|user) of index|columns? .* (occurs|holds)|called (user|item)_id|"
    r"types of a key differ|position \d+ of the sequence|too few impressions|holds no JSON object|(user|item) '"
)


def bytes_of(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode()


def trial(name: str, seed: int, folder: Path) -> bool:
    """Returns whether one damaged file of a case was read; otherwise it was refused. Anything else fails."""
    case, rng = CASES[name], np.random.default_rng([seed, len(name)])
    for file, content in case.files.items():
        (folder / file).write_bytes(bytes_of(content))
    original = mutations.rows(case.load(folder))
    victim = list(case.files)[rng.integers(len(case.files))]
    damaged = mutations.mutate(bytes_of(case.files[victim]), rng, case.separator)
    (folder / victim).write_bytes(damaged)
    where = f"{name}, seed {seed}, {victim}"
    try:
        dataset = case.load(folder)
    except DataError as error:
        message = str(error)
    else:
        found = mutations.rows(dataset)
        if found != original and case.plain is not None:
            assert found == case.plain(folder), where
        return True
    # UniSRec's files repeat one another, so the line that disagrees may be another file's.
    assert ("Toy." if name == "unisrec" else victim) in message, f"{where}: {message}"
    assert re.search(r"(line|row) \d", message) or OF_THE_FILE.search(message), f"{where}: {message}"
    return False


@pytest.mark.parametrize("name", CASES)
def test_a_few_damaged_files(name, tmp_path):
    read = [trial(name, seed, tmp_path) for seed in range(12)]
    assert not all(read)


@pytest.mark.long
def test_a_thousand_damaged_files_of_each_source(tmp_path):
    for name in CASES:
        (tmp_path / name).mkdir()
        read = sum(trial(name, seed, tmp_path / name) for seed in range(1000))
        print(f"{name}: 1000 damaged files, {read} read, {1000 - read} refused")
        assert 0 < read < 1000


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("d.csv", "\nuser_id,item_id\nu,i\n", "line 1: empty, where the header"),
        ("d.csv", 'user_id,item_id,t\nu,i,a\nv,i,"b""', "line 3: malformed row"),
        ("d.csv", 'user_id,item_id,t\nu,i,5" disk\nv,i,c\n', "line 2: malformed row"),
        ("d.csv", "user_id,item_id\nu,i\nv,j,", "line 3: malformed row of 3 fields"),
        ("d.csv", "user_id,item_id,t\nu,i\r,a\nv,i,c\n", "line 2: malformed row"),
        ("d.csv", "user_id,item_id\nu,i\x00\n", "line 2: 'i\\x00' in column 'item_id' has a control character"),
        ("d.jsonl", '{"user_id": "u", "item_id": 1}\n\x00{\n', "line 2: malformed row, not JSON"),
        ("d.jsonl", "[" * 100_000 + "\n", "line 1: malformed row, not JSON"),
    ],
)
def test_what_the_damage_has_found(tmp_path, file, content, words):
    (tmp_path / file).write_text(content, newline="")
    with pytest.raises(DataError) as error:
        load("table", tmp_path / file)
    assert f"{file}, {words}" in str(error.value)


def test_a_year_in_other_digits_is_part_of_the_title(tmp_path):
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,Film (١٩٩٥),Drama\n")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,4,1\n")
    assert load("movielens_small", tmp_path).items.row(0) == ("1", "Film (١٩٩٥)", None, "Drama")
