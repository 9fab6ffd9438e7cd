"""MIND (Wu et al. 2020, ACL): news that were shown to people, and the clicks on them."""

from pathlib import Path

import numpy as np
import polars as pl

from llm4rec_jax.data.interactions import PARTS, DataError
from llm4rec_jax.data.labeled import LABELED_SOURCES, LabeledData, LabeledExamples
from llm4rec_jax.data.sources.assembly import catalogue
from llm4rec_jax.data.sources.delimited import read_delimited
from llm4rec_jax.data.sources.reading import Table

NEWS = ("item_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
BEHAVIORS = ("impression_id", "user_id", "time", "history", "impressions")
FEATURES = ("title", "abstract", "category", "subcategory")
_TIME = "%m/%d/%Y %I:%M:%S %p"


@LABELED_SOURCES.register("mind")
def load_mind(
    path: Path, *, test_path: str | Path | None = None, history: int = 50, encoding: str = "utf-8"
) -> LabeledData:
    """Loads `behaviors.tsv` and `news.tsv` of MIND as labelled lists: an example for each news of an impression.

    The label is 1 for a click. Histories are those of the files, and everything in them is liked. Evaluation adds AUC,
    MRR, nDCG@5 and nDCG@10 per impression. Items have title, abstract, category and subcategory, all text.

    Args:
        path: the folder of a training set, such as MINDsmall_train.
        test_path: the folder of the set that tests, such as MINDsmall_dev. The last tenth of the impressions of `path`
            in time validates. Without it the last tenth tests, and the tenth before validates.
        history: length of the longest history H; the most recent news are kept.
        encoding: text encoding of the files.

    Raises:
        FileNotFoundError: if a file is missing.
        DataError: if a file is malformed, or an impression has news that news.tsv lacks.
    """
    if history < 1:
        raise ValueError(f"history is {history}, must be at least 1")
    folders = [path, *(() if test_path is None else (Path(test_path),))]
    items = pl.concat([_news(folder / "news.tsv", encoding) for folder in folders]).unique(
        "item_id", keep="first", maintain_order=True
    )
    row_of = {item: row for row, item in enumerate(items["item_id"])}
    tables = [
        read_delimited(folder / "behaviors.tsv", "\t", quoted=False, columns=BEHAVIORS, encoding=encoding)
        for folder in folders
    ]
    parts = [_parts(table, tests=len(tables) == 1) for table in tables[:1]]
    parts += [np.full(table.frame.height, PARTS.index("test")) for table in tables[1:]]
    names: dict[str, int] = {}
    # Both files number their impressions from 1: those of the second follow on the first's.
    firsts = (0, tables[0].frame.height)
    examples = [_examples(table, row_of, names, history, first) for table, first in zip(tables, firsts, strict=False)]
    merged = LabeledExamples._make(np.concatenate(columns) for columns in zip(*examples, strict=True))
    part = np.concatenate(parts)[merged.impression]
    if len(np.unique(part)) < len(PARTS):
        raise DataError(f"{tables[0].path} has too few impressions to train and validate on; give ten or more")
    return LabeledData(
        path.name,
        items,
        pl.DataFrame({"user_id": list(names)}),
        **{name: merged.take(np.flatnonzero(part == index)) for index, name in enumerate(PARTS)},
        protocol=f"MIND: news shown in impressions, clicked or not; at most {history} news as history; "
        + ("cut at .8 and .9 of the impressions by time" if test_path is None else "last tenth in time validates"),
    )


def _news(path: Path, encoding: str) -> pl.DataFrame:
    table = read_delimited(path, "\t", quoted=False, columns=NEWS, encoding=encoding)
    return catalogue(table, "item", "item_id", {name: name for name in FEATURES}).frame


def _parts(table: Table, tests: bool) -> np.ndarray:
    """Returns the part of each impression by time, as an index of `PARTS`."""
    texts = table.frame["time"].fill_null("")
    time = texts.str.strptime(pl.Datetime, _TIME, strict=False)
    wrong = time.is_null().arg_true()
    if len(wrong):
        raise table.error(wrong[0], f"time {texts[wrong[0]]!r} is not of the form 11/15/2019 8:55:22 AM; correct it")
    rank = np.argsort(np.argsort(time.to_numpy(), kind="stable"), kind="stable")
    return np.digitize(rank / len(rank), (0.8, 0.9) if tests else (0.9,))


def _examples(table: Table, row_of: dict[str, int], names: dict[str, int], history: int, first: int) -> LabeledExamples:
    """Makes the examples of a file, whose impressions are numbered from `first`. New users are added to `names`."""
    users, targets, labels, impressions, pasts = [], [], [], [], []

    def item(row: int, name: str) -> int:
        if name not in row_of:
            raise table.error(row, f"news {name!r} is not in news.tsv; take both files of one version")
        return row_of[name]

    for row, (_, user, _, past, shown) in enumerate(table.frame.iter_rows()):
        if not user or not shown:
            raise table.error(row, "an impression needs a user and news that were shown; complete or remove the row")
        pasts.append([item(row, name) for name in (past or "").split()[-history:]])
        for entry in shown.split():
            name, _, label = entry.rpartition("-")
            if label not in ("0", "1"):
                raise table.error(row, f"{entry!r} is not a news id with -0 or -1; give the files with labels")
            users.append(names.setdefault(user.strip(), len(names)))
            targets.append(item(row, name))
            labels.append(int(label))
            impressions.append(row)
    if not users:
        raise DataError(f"{table.path} shows no news; give a file with impressions")
    of_row = np.array(impressions, np.int32)
    lengths = np.array([len(past) for past in pasts])
    mask = np.arange(history) < lengths[:, None]
    items = np.zeros(mask.shape, np.int32)
    items[mask] = np.concatenate([np.array(past, np.int32) for past in pasts])
    return LabeledExamples(
        user=np.array(users, np.int32),
        history=items[of_row],
        liked=mask[of_row],
        mask=mask[of_row],
        target=np.array(targets, np.int32),
        label=np.array(labels, np.float32),
        impression=of_row + np.int32(first),
    )
