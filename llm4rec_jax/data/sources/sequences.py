"""Files of one user a line: the user's id, then item ids in order of time."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from llm4rec_jax.data.interactions import Dataset
from llm4rec_jax.data.sources.assembly import assemble, catalogue, observed
from llm4rec_jax.data.sources.formats import read_table
from llm4rec_jax.data.sources.reading import Table, read_text
from llm4rec_jax.data.sources.registry import register


@register("sequences")
def load_sequences(
    path: Path,
    *,
    items_path: str | Path | None = None,
    item: str = "item_id",
    item_columns: Mapping[str, str] | None = None,
    items_header: Sequence[str] | None = None,
    header: bool = False,
    encoding: str = "utf-8",
) -> Dataset:
    """Loads whitespace-separated sequences. There are no ratings.

    An interaction's timestamp is its position in the user's line, from 0: it orders a user's interactions and says
    nothing across users.

    Args:
        path: the sequences.
        items_path: a table of the items (.tsv, .csv, .parquet, .jsonl, .ndjson); without it, items are those in the
            sequences, in order of first appearance.
        item: the id column of the items' table.
        item_columns: column of the items' table by feature name; all columns by default.
        items_header: names of the columns of an items' table without a header line.
        header: whether the first line names the columns and is skipped.
        encoding: text encoding of the files.

    Raises:
        FileNotFoundError: if a file is missing.
        DataError: if a line has no items, a user has two lines, the first line looks like a header that
            was not announced, or the items' table lacks an item.
    """
    lines = pl.Series("line", read_text(path, encoding).decode().split("\n"))
    first = 2 if header else 1
    words = lines[first - 1 :].str.extract_all(r"\S+")
    table = Table(
        path,
        pl.DataFrame([words.list.first().alias("user_id"), words.list.slice(1).alias("item_id")]),
        lambda row: f"line {row + first}",
    )
    short = (words.list.len() < 2).arg_true()
    if len(short):
        raise table.error(short[0], "malformed row, not a user id and item ids; complete or remove the line")
    name = str(table.frame["user_id"][0]).lower()
    if not header and re.fullmatch(r"user(_?id)?(:token)?|uid", name):
        raise table.error(0, f"{name!r} looks like the header of the file and not like a user; give header=True")
    users = catalogue(table, "user", "user_id", {})
    index = table.frame.with_row_index("row").with_columns(
        pl.int_ranges(pl.col("item_id").list.len()).alias("position")
    )
    index = index.explode("item_id", "position")
    interactions = Table(path, index, lambda row: f"line {index['row'][row] + first}")
    if items_path is None:
        items = observed(interactions, "item", "item_id")
    else:
        items = catalogue(
            read_table(Path(items_path), columns=items_header, encoding=encoding), "item", item, item_columns
        )
    return assemble(
        path.stem, interactions, users, items, user="user_id", item="item_id", rating=None, timestamp="position"
    )
