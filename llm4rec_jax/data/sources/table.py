"""Tables of one interaction a row, in CSV, TSV, Parquet, JSON or JSON lines."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from llm4rec_jax.data.interactions import PARTS, DataError, Dataset
from llm4rec_jax.data.labeled import LABELED_SOURCES, LabeledData, label_examples
from llm4rec_jax.data.sources.assembly import Catalogue, assemble, catalogue, observed
from llm4rec_jax.data.sources.formats import read_table
from llm4rec_jax.data.sources.reading import Table, ids
from llm4rec_jax.data.sources.registry import register

# Other names of the parts of a split, in lower case.
_SYNONYMS = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation", "testing": "test"}


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """Options of a table of interactions.

    Attributes:
        user: the user column, in the users' table too.
        item: the item column.
        rating: the rating column, if there is one.
        timestamp: the time column, if there is one; dates become seconds since 1970.
        part: the column that says train, validation or test, if there is one; split "given" reads it.
        validation_path, test_path: tables of the interactions that validate and test; the main table then trains.
        items_path: the items' table; without it, items are those with interactions, in order of first appearance.
        users_path: the users' table; as for items.
        item_key: the id column of the items' table, where it is not called as `item`.
        user_key: the id column of the users' table, where it is not called as `user`.
        item_columns: column by feature name, e.g. {"title": "movie_title"}. By default all columns of the items'
            table. Without such a table they are columns of the interactions, and an item's first row counts.
        user_columns: as for items.
        separator, quoted, columns, encoding: how text files are read, see `read_table`; `columns` names the columns of
            interactions without a header line.
    """

    user: str = "user_id"
    item: str = "item_id"
    rating: str | None = None
    timestamp: str | None = None
    part: str | None = None
    validation_path: str | Path | None = None
    test_path: str | Path | None = None
    items_path: str | Path | None = None
    users_path: str | Path | None = None
    item_key: str | None = None
    user_key: str | None = None
    item_columns: Mapping[str, str] | None = None
    user_columns: Mapping[str, str] | None = None
    separator: str | None = None
    quoted: bool | None = None
    columns: Sequence[str] | None = None
    encoding: str = "utf-8"


_DEFAULTS = TableOptions()
_PART = "part of the split"


@register("table")
def load_table(path: Path, options: TableOptions = _DEFAULTS) -> Dataset:
    """Loads a table of interactions and, where given, tables of the items and users.

    Args:
        path: the interactions: .csv, .tsv, .dat, .txt, .parquet, .json, .jsonl or .ndjson, also compressed.
        options: see `TableOptions`.

    Raises:
        FileNotFoundError: if a file is missing.
        DataError: if a file is malformed or an interaction refers to a user or item that the given table lacks.
    """
    table = _one_a_row(_interactions(path, options), options)
    items = _side_table("item", path, options.items_path, options.item_key or options.item, options, table)
    users = _side_table("user", path, options.users_path, options.user_key or options.user, options, table)
    dataset = assemble(
        path.name.split(".")[0] if path.suffix.lower() in (".gz", ".zst") else path.stem,
        table,
        users,
        items,
        user=options.user,
        item=options.item,
        rating=options.rating,
        timestamp=options.timestamp,
    )
    part = _PART if options.test_path is not None else options.part
    if part is None:
        return dataset
    return dataclasses.replace(
        dataset, interactions=dataclasses.replace(dataset.interactions, part=_parts(table, part))
    )


@dataclasses.dataclass(frozen=True)
class LabeledTableOptions(TableOptions):
    """Options of a table of labelled rows, in addition to those of `TableOptions`.

    Attributes:
        label: the column with 1 for liked and 0 for not, or with ratings if there is a threshold.
        threshold: the rating from which an item is liked; None takes labels of 0 and 1.
        history: length of the longest history.
        min_history: length of the shortest history of an example.
    """

    label: str = "label"
    threshold: float | None = None
    history: int = 10
    min_history: int = 1


_LABELED_DEFAULTS = LabeledTableOptions()


@LABELED_SOURCES.register("labeled_table")
def load_labeled_table(path: Path, options: LabeledTableOptions = _LABELED_DEFAULTS) -> LabeledData:
    """Loads a table of labelled or rated rows as examples of the rating task.

    Every row with at least `min_history` earlier rows of its user is an example, whose history are these rows. The
    parts are those of the table (`part`, or `validation_path` and `test_path`); without, the last tenth of all rows in
    time, or in the file, tests, and the tenth before validates.

    Args:
        path: the table, see `load_table`.
        options: see `LabeledTableOptions`.

    Raises:
        FileNotFoundError: if a file is missing.
        DataError: if a file is malformed, a label is neither 0 nor 1, or a part has no example.
    """
    dataset = load_table(path, dataclasses.replace(options, rating=options.label))
    return label_examples(
        dataset, threshold=options.threshold, history=options.history, min_history=options.min_history
    )


def _interactions(path: Path, options: TableOptions) -> Table:
    """Reads the interactions; of three files, one below the other with a column that names their part."""

    def read(at: Path) -> Table:
        return read_table(
            at,
            separator=options.separator,
            quoted=options.quoted,
            columns=options.columns,
            encoding=options.encoding,
        )

    if options.validation_path is None and options.test_path is None:
        return read(path)
    if options.validation_path is None or options.test_path is None or options.part is not None:
        raise ValueError("a split in files needs validation_path and test_path, and no part; give both paths")
    tables = [read(path), read(Path(options.validation_path)), read(Path(options.test_path))]
    frames = [table.frame.with_columns(pl.lit(name).alias(_PART)) for name, table in zip(PARTS, tables, strict=True)]
    try:
        frame = pl.concat(frames, how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{tables[2].path}: the columns differ from those of {path} ({error}); give three files of one form"
        ) from error
    begins = np.cumsum([0] + [table.frame.height for table in tables])

    def locate(row: int) -> str:
        of = int(np.searchsorted(begins, row, side="right")) - 1
        return f"{tables[of].path.name}, {tables[of].locate(row - int(begins[of]))}"

    return Table(path, frame, locate)


def _one_a_row(table: Table, options: TableOptions) -> Table:
    """Returns the interactions of a table that has a list of a user's items in each row, one a row.

    Raises:
        DataError: if a row's lists differ in length.
    """
    frame = table.frame
    if not isinstance(frame.schema.get(options.item), pl.List):
        return table
    asked = (options.item, options.rating, options.timestamp, options.part)
    lists = [name for name in asked if name is not None and isinstance(frame.schema.get(name), pl.List)]
    lengths = frame.select(pl.col(name).list.len().fill_null(0) for name in lists)
    wrong = lengths.select(pl.any_horizontal(pl.col(name) != pl.col(options.item) for name in lists)).to_series()
    for row in wrong.arg_true()[:1]:
        raise table.error(row, f"the lists {', '.join(lists)} have the lengths {lengths.row(row)}; give one length")
    numbered = frame.with_row_index("row of the file").filter(lengths[options.item] > 0).explode(lists)
    rows = numbered["row of the file"].to_list()
    return Table(table.path, numbered.drop("row of the file"), lambda row: table.locate(rows[row]))


def _side_table(
    kind: str, path: Path, side_path: str | Path | None, key: str, options: TableOptions, interactions: Table
) -> Catalogue:
    """Makes the table of items or users from its file, or else from the interactions."""
    features = options.item_columns if kind == "item" else options.user_columns
    if side_path is None:
        return observed(interactions, kind, options.item if kind == "item" else options.user, features)
    side = Path(side_path)
    # Files of one extension are taken to be of one form.
    alike = side.suffix.lower() == path.suffix.lower()
    table = read_table(
        side,
        separator=options.separator if alike else None,
        quoted=options.quoted if alike else None,
        keys=None if features is None else [key, *features.values()],
        encoding=options.encoding,
    )
    return catalogue(table, kind, key, features)


def _parts(table: Table, name: str) -> np.ndarray:
    """Returns the part of each row, int8 [E], as an index of `PARTS`."""
    names = ids(table, name).str.to_lowercase().replace(_SYNONYMS)
    wrong = (~names.is_in(list(PARTS))).arg_true()
    if len(wrong):
        raise table.error(wrong[0], f"{name} {names[wrong[0]]!r} is none of {', '.join(PARTS)}; name one of these")
    return names.replace_strict({part: index for index, part in enumerate(PARTS)}, return_dtype=pl.Int8).to_numpy()
