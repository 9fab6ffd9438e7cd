"""Tables of one interaction a row, in CSV, TSV, Parquet or JSON lines."""

from collections.abc import Mapping
from pathlib import Path

from llm4rec_jax.data.interactions import Dataset
from llm4rec_jax.data.sources.assembly import assemble, catalogue, observed
from llm4rec_jax.data.sources.reading import read_table
from llm4rec_jax.data.sources.registry import register


@register("table")
def load_table(
    path: Path,
    *,
    user: str = "user_id",
    item: str = "item_id",
    rating: str | None = None,
    timestamp: str | None = None,
    items_path: str | Path | None = None,
    users_path: str | Path | None = None,
    item_columns: Mapping[str, str] | None = None,
    user_columns: Mapping[str, str] | None = None,
    encoding: str = "utf-8",
) -> Dataset:
    """Loads a table of interactions and, where given, tables of the items and users.

    Args:
        path: the interactions: .csv, .tsv, .parquet, .jsonl or .ndjson.
        user: the user column, in the users' table too.
        item: the item column, in the items' table too.
        rating: the rating column, if there is one.
        timestamp: the time column, if there is one; dates of Parquet files become seconds since 1970.
        items_path: the items' table; without it, items are those with interactions, in order of first appearance.
        users_path: the users' table; as for items.
        item_columns: column by feature name, e.g. {"title": "movie_title"}. By default all columns of the items'
            table. Without such a table they are columns of the interactions, and an item's first row counts.
        user_columns: as for items.
        encoding: text encoding of the files.

    Raises:
        FileNotFoundError: if a file is missing.
        DataError: if a file is malformed or an interaction refers to a user or item that the given table lacks.
    """
    table = read_table(path, encoding=encoding)
    if items_path is None:
        items = observed(table, "item", item, item_columns)
    else:
        items = catalogue(read_table(Path(items_path), encoding=encoding), "item", item, item_columns)
    if users_path is None:
        users = observed(table, "user", user, user_columns)
    else:
        users = catalogue(read_table(Path(users_path), encoding=encoding), "user", user, user_columns)
    return assemble(path.stem, table, users, items, user=user, item=item, rating=rating, timestamp=timestamp)
