"""UniSRec's files: sequences that the authors cut into training, validation and test, and the items' text."""

from pathlib import Path

import polars as pl

from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.data.sources.assembly import assemble, catalogue
from llm4rec_jax.data.sources.atomic import read_atomic
from llm4rec_jax.data.sources.reading import Table, read_text, require
from llm4rec_jax.data.sources.registry import register

# A line of a file: user index, the items before, the target.
Line = tuple[str, list[str], str]


@register("unisrec")
def load_unisrec(path: Path, *, window: int = 50, encoding: str = "utf-8") -> Dataset:
    """Loads `<name>.{train,valid,test}.inter`, `.text`, `.item2index` and `.user2index` (Hou et al. 2022, KDD).

    The authors hold out each user's last item for the test and the one before for validation; training has a line for
    every earlier item but the first, with the items before it, at most the last `window`. The sequences are put
    together again, and the loader checks that every line of the three files is what leave-one-out gives on them: with
    split `leave_one_out`, targets are the authors'.

    Items have text (string), users none. Users stand in the order of the test file. A timestamp is the position in the
    user's sequence, from 0. There are no ratings.

    Args:
        path: the folder of the files.
        window: the longest history that a line holds.
        encoding: text encoding of the files.

    Raises:
        ValueError: if the window is not positive.
        FileNotFoundError: if a file is missing, or the folder has no or several `.test.inter`.
        DataError: if a file is malformed, a line is not what leave-one-out gives, or an item has no index or text.
    """
    if window < 1:
        raise ValueError(f"window must be positive, not {window}")
    test_files = sorted(require(path).glob("*.test.inter"))
    if len(test_files) != 1:
        names = ", ".join(file.name for file in test_files) or "none"
        raise FileNotFoundError(
            f"{path} should hold one .test.inter file and holds {names}; give the data set's folder"
        )
    name = test_files[0].name.removesuffix(".test.inter")
    sequences = _sequences(path, name, window, encoding)
    asins = _index(path / f"{name}.item2index", encoding)
    users = _index(path / f"{name}.user2index", encoding)
    texts, _ = read_atomic(path / f"{name}.text", encoding)
    items = catalogue(texts, "item", "item_id", {"text": "text"})
    rows = [(user, item, position) for user, sequence in sequences.items() for position, item in enumerate(sequence)]
    frame = pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "timestamp": pl.Int64}, orient="row")
    for column, index, kind in (("user", users, "user2index"), ("item", asins, "item2index")):
        missing = frame.filter(~pl.col(column).is_in(list(index)))
        if missing.height:
            raise DataError(
                f"{path / f'{name}.{kind}'} has no {column} of index {missing[column][0]!r}, which {name}.*.inter has "
                f"({missing[column].n_unique()} such); take the files of one version"
            )
    frame = frame.with_columns(
        pl.col("user").replace_strict(users, return_dtype=pl.String).alias("user_id"),
        pl.col("item").replace_strict(asins, return_dtype=pl.String).alias("item_id"),
    )
    table = Table(
        test_files[0],
        frame,
        lambda row: f"user {frame['user'][row]}, position {frame['timestamp'][row]} of the sequence",
    )
    ordered = Table(test_files[0], frame.select("user_id").unique(maintain_order=True), table.locate)
    return assemble(
        name,
        table,
        catalogue(ordered, "user", "user_id", {}),
        items,
        user="user_id",
        item="item_id",
        rating=None,
        timestamp="timestamp",
    )


def _sequences(folder: Path, name: str, window: int, encoding: str) -> dict[str, list[str]]:
    """Returns each user's items as indices, oldest first, after checking every line of the three files."""
    tables = {part: _lines(folder / f"{name}.{part}.inter", encoding) for part in ("train", "valid", "test")}
    rows: dict[str, dict[str, list[int]]] = {}
    for part, (table, lines) in tables.items():
        rows[part] = {}
        for row, (user, _, _) in enumerate(lines):
            rows[part].setdefault(user, []).append(row)
            if part != "train" and len(rows[part][user]) > 1:
                raise table.error(row, f"user {user} has a line already; a user has one item to hold out")
    table, lines = tables["test"]
    for part in ("train", "valid"):
        for user, lines_of_user in rows[part].items():
            if user not in rows["test"]:
                raise tables[part][0].error(
                    lines_of_user[0], f"user {user} is not in {table.path.name}; take files of one version"
                )
    sequences = {}
    for user, [last] in rows["test"].items():
        if user not in rows["valid"]:
            raise table.error(last, f"user {user} is not in {name}.valid.inter; take files of one version")
        # The authors write a user's longest history first.
        steps = [("train", row) for row in reversed(rows["train"].get(user, []))]
        steps += [("valid", rows["valid"][user][0]), ("test", last)]
        part, row = steps[0]
        # Training items that are no target: the first alone, or all there are if training has no line.
        sequence = list(tables[part][1][row][1])
        for part, row in steps:
            _, history, target = tables[part][1][row]
            if history != sequence[-window:]:
                raise tables[part][0].error(
                    row,
                    f"the history of user {user} is {' '.join(history)} where leave-one-out of the sequence has "
                    f"{' '.join(sequence[-window:])}; give the authors' files, longest histories first, and window= "
                    "as they were cut",
                )
            sequence.append(target)
        sequences[user] = sequence
    return sequences


def _lines(path: Path, encoding: str) -> tuple[Table, list[Line]]:
    """Reads a file of histories and targets."""
    table, kinds = read_atomic(path, encoding)
    expected = {"user_id": "token", "item_id_list": "token_seq", "item_id": "token"}
    if kinds != expected:
        raise DataError(f"{path}, line 1: columns {kinds} where UniSRec's files have {expected}; give one of them")
    lines = []
    for row, (user, history, target) in enumerate(table.frame.iter_rows()):
        if not (user and history and target):
            raise table.error(row, "a user, a history and a target are needed; complete or remove the line")
        lines.append((user, history.split(), target))
    return table, lines


def _index(path: Path, encoding: str) -> dict[str, str]:
    """Reads a file of ids and their indices: {index: id}."""
    index: dict[str, str] = {}
    for number, line in enumerate(read_text(path, encoding).decode().split("\n"), 1):
        fields = line.split()
        if len(fields) != 2:
            raise DataError(f"{path}, line {number}: {line!r} is not an id and its index; correct the line")
        if fields[1] in index:
            raise DataError(f"{path}, line {number}: index {fields[1]} stands twice; keep one of the lines")
        index[fields[1]] = fields[0]
    return index
