"""Files of one user a line: the user's id, then item ids in order of time."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from llm4rec_jax.data.interactions import Dataset
from llm4rec_jax.data.sources.assembly import assemble, catalogue, observed
from llm4rec_jax.data.sources.reading import Table, read_table, read_text
from llm4rec_jax.data.sources.registry import register


@register("sequences")
def load_sequences(
    path: Path,
    *,
    items_path: str | Path | None = None,
    item: str = "item_id",
    item_columns: Mapping[str, str] | None = None,
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
        encoding: text encoding of the files.

    Raises:
        FileNotFoundError: if a file is missing.
        DataError: if a line has no items, a user has two lines, or the items' table lacks an item.
    """
    lines = pl.Series("line", read_text(path, encoding).decode().split("\n"))
    words = lines.str.extract_all(r"\S+")
    table = Table(
        path,
        pl.DataFrame([words.list.first().alias("user_id"), words.list.slice(1).alias("item_id")]),
        lambda row: f"line {row + 1}",
    )
    short = (words.list.len() < 2).arg_true()
    if len(short):
        raise table.error(short[0], "malformed row, not a user id and item ids; complete or remove the line")
    users = catalogue(table, "user", "user_id", {})
    index = table.frame.with_row_index("row").with_columns(
        pl.int_ranges(pl.col("item_id").list.len()).alias("position")
    )
    index = index.explode("item_id", "position")
    interactions = Table(path, index, lambda row: f"line {index['row'][row] + 1}")
    if items_path is None:
        items = observed(interactions, "item", "item_id")
    else:
        items = catalogue(read_table(Path(items_path), encoding=encoding), "item", item, item_columns)
    return assemble(
        path.stem, interactions, users, items, user="user_id", item="item_id", rating=None, timestamp="position"
    )
