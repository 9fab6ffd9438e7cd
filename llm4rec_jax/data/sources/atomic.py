"""RecBole's atomic files: tab-separated, with headers of the form `name:type`."""

from pathlib import Path

import polars as pl

from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.data.sources.assembly import Catalogue, assemble, catalogue, observed
from llm4rec_jax.data.sources.delimited import read_delimited
from llm4rec_jax.data.sources.reading import Table, require
from llm4rec_jax.data.sources.registry import register

KINDS = ("token", "token_seq", "float", "float_seq")


@register("atomic")
def load_atomic(
    path: Path,
    *,
    user: str = "user_id",
    item: str = "item_id",
    rating: str | None = "rating",
    timestamp: str | None = "timestamp",
    encoding: str = "utf-8",
) -> Dataset:
    """Loads `<name>.inter` and, where they exist beside it, `<name>.item` and `<name>.user`.

    Without a table of items or users, it is made from the interactions in order of first appearance. Feature columns
    keep their names; their types become string (token, token_seq), float and list of float.

    Args:
        path: the .inter file, or a folder that holds one, or one called after the folder.
        user: the user column, in all files.
        item: the item column, in all files.
        rating: the rating column; the default one may be absent; None ignores ratings.
        timestamp: the time column; as for ratings.
        encoding: text encoding of the files.

    Raises:
        FileNotFoundError: if there is no .inter file, or the choice is open.
        DataError: if a file is malformed or refers to what the others lack.
    """
    inter = _inter_file(path)
    table, kinds = read_atomic(inter, encoding)
    histories = [name for name, kind in kinds.items() if kind.endswith("_seq") and name.startswith(item)]
    if histories:
        raise DataError(
            f"{inter}, line 1: column {histories[0]!r} holds whole histories ({kinds[histories[0]]}), not one "
            "interaction a line. Write each user's longest line as `user item item ...` and load it with source "
            "'sequences', e.g. `tail -n +2 name.test.inter | tr '\\t' ' ' > sequences.txt`"
        )
    # The default columns are optional; a column asked for by another name is not.
    if rating == "rating" and rating not in kinds:
        rating = None
    if timestamp == "timestamp" and timestamp not in kinds:
        timestamp = None
    users = _side_table(inter.with_suffix(".user"), "user", user, table, encoding)
    items = _side_table(inter.with_suffix(".item"), "item", item, table, encoding)
    name = inter.stem
    return assemble(name, table, users, items, user=user, item=item, rating=rating, timestamp=timestamp)


def read_atomic(path: Path, encoding: str = "utf-8") -> tuple[Table, dict[str, str]]:
    """Reads an atomic file as text.

    Returns:
        The table, its columns named without their types, and the type of each column.

    Raises:
        FileNotFoundError: if the file is missing.
        DataError: if it is malformed, or a header lacks a known type.
    """
    table = read_delimited(path, "\t", quoted=False, encoding=encoding)
    kinds: dict[str, str] = {}
    for header in table.frame.columns:
        name, _, kind = header.rpartition(":")
        if not name or kind not in KINDS:
            raise DataError(
                f"{path}, line 1: header {header!r} has no known type; write name:type, type one of {KINDS}"
            )
        if name in kinds:
            raise DataError(f"{path}, line 1: column {name!r} occurs twice in the header; rename one of them")
        kinds[name] = kind
    return Table(path, table.frame.rename(dict(zip(table.frame.columns, kinds, strict=True))), table.locate), kinds


def _inter_file(path: Path) -> Path:
    if require(path).is_file():
        return path
    named = path / f"{path.absolute().name}.inter"
    if named.is_file():
        return named
    inter_files = sorted(path.glob("*.inter"))
    if len(inter_files) == 1:
        return inter_files[0]
    there = ", ".join(sorted(entry.name for entry in path.iterdir())) or "(nothing)"
    raise FileNotFoundError(
        f"{path} should hold one .inter file, or {named.name}, but holds: {there}. Give the path of the .inter file"
    )


def _side_table(path: Path, kind: str, key: str, interactions: Table, encoding: str) -> Catalogue:
    if not path.exists():
        return observed(interactions, kind, key)
    table, kinds = read_atomic(path, encoding)
    columns = [_typed(table, name, kinds[name]) if name != key else table.frame[name] for name in kinds]
    return catalogue(Table(path, pl.DataFrame(columns), table.locate), kind, key)


def _typed(table: Table, name: str, kind: str) -> pl.Series:
    """Returns a feature column in the type that its header states; an empty field is null."""
    text = table.frame[name]
    if kind in ("token", "token_seq"):
        return text
    words = text.str.extract_all(r"\S+")
    values = words.list.eval(pl.element().cast(pl.Float64, strict=False))
    wrong = (values.list.eval(pl.element().is_null()).list.any()).arg_true()
    if kind == "float" and not len(wrong):
        wrong = (words.list.len() > 1).arg_true()
    if len(wrong):
        raise table.error(wrong[0], f"{name} {text[wrong[0]]!r} is not {kind}; correct it or declare it a token")
    return values if kind == "float_seq" else values.list.first()
