"""The JSON files of LC-Rec (Zheng et al. 2024, ICDE), LETTER and MiniOneRec: a sequence a user, and items' texts."""

from pathlib import Path
from typing import Any

import polars as pl

from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.data.sources.assembly import assemble, catalogue, observed
from llm4rec_jax.data.sources.json_rows import parse
from llm4rec_jax.data.sources.reading import Table, read_text, require
from llm4rec_jax.data.sources.registry import register


@register("lc_rec")
def load_lc_rec(path: Path, *, encoding: str = "utf-8") -> Dataset:
    """Loads `<name>.inter.json`, {user: [item, …]}, and `<name>.item.json`, {item: {"title": …}}, where it exists.

    A timestamp is the position in the user's sequence, from 0. There are no ratings. Semantic ids in
    `<name>.index.json` belong to the same item ids: see `semantic_ids.load_index`.

    Args:
        path: the folder of the files, or the .inter.json file.
        encoding: text encoding of the files.

    Raises:
        FileNotFoundError: if a file is missing, or the folder has no or several .inter.json.
        DataError: if a file is malformed, or a sequence has an item that the items' file lacks.
    """
    file = require(path)
    if path.is_dir():
        files = sorted(path.glob("*.inter.json"))
        if len(files) != 1:
            names = ", ".join(found.name for found in files) or "none"
            raise FileNotFoundError(f"{path} should hold one .inter.json file and holds {names}; give the file")
        file = files[0]
    name = file.name.removesuffix(".inter.json")
    rows = []
    for user, items in _object(file, encoding).items():
        if not isinstance(items, list) or not items or {type(item) for item in items} - {int, str}:
            raise DataError(f"{file}, user {user!r}: {items!r:.80} is not a list of item ids; give some")
        rows += [(user, str(item), position) for position, item in enumerate(items)]
    frame = pl.DataFrame(rows, {"user_id": pl.String, "item_id": pl.String, "position": pl.Int64}, orient="row")
    table = Table(file, frame, lambda row: "user {!r}, item {!r}, position {} of the sequence".format(*frame.row(row)))
    items_file = file.with_name(f"{name}.item.json")
    items = _items(items_file, encoding) if items_file.exists() else observed(table, "item", "item_id")
    users = observed(table, "user", "user_id")
    return assemble(name, table, users, items, user="user_id", item="item_id", rating=None, timestamp="position")


def _items(file: Path, encoding: str) -> Any:
    """Reads the table of items; their columns are the keys whose values are text or numbers."""
    held = _object(file, encoding)
    for item, value in held.items():
        if not isinstance(value, dict):
            raise DataError(f"{file}, item {item!r}: {value!r:.80} is not an object; give its title and other texts")
    keys = dict.fromkeys(key for value in held.values() for key in value)
    columns: dict[str, list[Any]] = {"item_id": list(held)}
    for key in keys:
        values = [value.get(key) for value in held.values()]
        # MiniOneRec writes some descriptions as lists of texts.
        columns[key] = [" ".join(map(str, value)) if isinstance(value, list) else value for value in values]
        wrong = next((row for row, v in enumerate(columns[key]) if v is not None and not isinstance(v, str)), None)
        if wrong is not None:
            raise DataError(
                f"{file}, item {list(held)[wrong]!r}: {key} {values[wrong]!r:.80} is no text; write it as one"
            )
    frame = pl.DataFrame(columns, dict.fromkeys(columns, pl.String))
    return catalogue(Table(file, frame, lambda row: f"item {frame['item_id'][row]!r}"), "item", "item_id")


def _object(file: Path, encoding: str) -> dict[str, Any]:
    value = parse(read_text(file, encoding), str(file), "fetch it again")
    if not isinstance(value, dict) or not value:
        raise DataError(f"{file} holds no JSON object with entries; give one of ids and what belongs to them")
    return value
