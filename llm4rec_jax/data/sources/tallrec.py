"""TALLRec's movie task (Bao et al. 2023, arXiv 2305.00447): whether a user likes a film, given ten rated ones."""

import json
from pathlib import Path

import numpy as np
import polars as pl

from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.data.labeled import LABELED_SOURCES, LabeledData, LabeledExamples
from llm4rec_jax.data.sources.movielens import load_movielens_100k, natural_title
from llm4rec_jax.data.sources.reading import read_text, require

# Choices of the authors: number of films in a history, number of rows kept from the end of the list, and the rating
# from which a film is liked.
HISTORY, KEPT, LIKED = 10, 10_000, 4

FILES = {"train": "train.json", "validation": "valid.json", "test": "test.json"}
INSTRUCTION = (
    "Given the user's preference and unpreference, identify whether the user will like the target movie by answering "
    '"Yes." or "No.".'
)


@LABELED_SOURCES.register("tallrec_movie")
def load_tallrec_movie(
    path: Path | None = None, *, movielens: str | Path | None = None, natural_titles: bool = True
) -> LabeledData:
    """Makes the 8,000, 1,000 and 1,000 questions from MovieLens-100k, as the authors did.

    Each user's ratings are ordered by time, ties in input order; every rating after the tenth is a question, its
    history the ten before. Users stand in order of first appearance. The last 10,000 of all questions are kept and cut
    at .8 and .9. A rating of 4 or 5 is a like. So a user can stand on both sides of
    a cut: one does at each, with different questions.

    The authors published text without ids; made here, the same questions have users to cluster by and an order of the
    history. Items are those of source `movielens_100k`; published prompts hold title and year only.

    Args:
        path: a folder with any of the published train.json, valid.json and test.json, which are compared with the
            questions made here, row by row; None compares nothing.
        movielens: the folder of MovieLens-100k in atomic files; the installed one by default.
        natural_titles: whether to move trailing articles to the front, which the published prompts don't.

    Raises:
        FileNotFoundError: if MovieLens-100k or the folder is missing, or the folder has none of the files.
        DataError: if the ratings are too few, or a published row differs; the message names file and row.
    """
    dataset = load_movielens_100k(None if movielens is None else Path(movielens), natural_titles=False)
    questions = _questions(dataset)
    if questions.size < 10:
        raise DataError(f"{dataset.name} gives {questions.size} questions; give data of users with many ratings")
    questions = questions.take(np.arange(max(questions.size - KEPT, 0), questions.size))
    first, second = int(questions.size * 0.8), int(questions.size * 0.9)
    bounds = {"train": (0, first), "validation": (first, second), "test": (second, questions.size)}
    parts = {name: questions.take(np.arange(*bound)) for name, bound in bounds.items()}
    if path is not None:
        compare(require(Path(path)), parts, published_titles(dataset))
    items = dataset.items
    if natural_titles:
        items = items.with_columns(pl.Series("title", map(natural_title, items["title"]), pl.String))
    return LabeledData(
        "tallrec_movie",
        items,
        dataset.users,
        **parts,
        protocol=f"TALLRec's movie task: of each user's ratings in order of time, each after the first {HISTORY} is a "
        f"question with the {HISTORY} before as history, liked from rating {LIKED}; the last {questions.size} "
        "questions by the user's first appearance, cut at .8 and .9",
    )


def published_titles(dataset: Dataset) -> list[str]:
    """The films' titles [I] as the published prompts spell them: with years, other than ASCII letters lost."""
    titles = []
    for title, year in dataset.items.select("title", "year").iter_rows():
        title = f"{title} ({year})" if year else title
        # Source movielens_100k mends this title, which ends in a mark for video.
        title += " (V)" if title == "Land Before Time III: The Time of the Great Giving (1995)" else ""
        titles.append(title.encode("ascii", "replace").decode())
    return titles


def render(rows: LabeledExamples, titles: list[str]) -> list[dict[str, str]]:
    """The questions as published: a dictionary of instruction, input and output for each.

    Args:
        rows: the questions.
        titles: [I], as `published_titles` has them.
    """

    def quoted(items: np.ndarray) -> str:
        return ", ".join(f'"{titles[item]}"' for item in items)

    published = []
    for row in range(rows.size):
        liked, disliked = (rows.history[row][rows.mask[row] & (rows.liked[row] == want)] for want in (True, False))
        published.append(
            {
                "instruction": INSTRUCTION,
                "input": f"User Preference: {quoted(liked)}\nUser Unpreference: {quoted(disliked)}\nWhether the user "
                f"will like the target movie {quoted(rows.target[row : row + 1])}?",
                "output": "Yes." if rows.label[row] else "No.",
            }
        )
    return published


def compare(folder: Path, parts: dict[str, LabeledExamples], titles: list[str]) -> None:
    """Compares questions with the published files that a folder has.

    Raises:
        FileNotFoundError: if it has none of them.
        DataError: if a file is not JSON, or its rows are more, fewer or others.
    """
    files = {name: folder / file for name, file in FILES.items() if (folder / file).is_file()}
    if not files:
        raise FileNotFoundError(f"{folder} has none of {', '.join(FILES.values())}; give the folder that holds them")
    for name, path in files.items():
        try:
            published = json.loads(read_text(path, "utf-8").decode())
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is not JSON ({error}); fetch it again") from error
        made = render(parts[name], titles)
        if not isinstance(published, list) or len(published) != len(made):
            size = f"{len(published)} rows" if isinstance(published, list) else f"a {type(published).__name__}"
            raise DataError(f"{path} has {size} where MovieLens-100k gives {len(made)}; give the published file")
        for row, (theirs, ours) in enumerate(zip(published, made, strict=True)):
            if theirs != ours:
                raise DataError(
                    f"{path}, row {row + 1}: {theirs!r} is not what MovieLens-100k gives, {ours!r}; give the "
                    "published file and the official ratings"
                )


def _questions(dataset: Dataset) -> LabeledExamples:
    """All questions of a data set, one for each rating that has `HISTORY` ratings of its user before it."""
    data = dataset.interactions
    if data.timestamp is None or data.rating is None:
        raise DataError("TALLRec's questions are made of ratings with times: give the official MovieLens-100k folder")
    _, first = np.unique(data.user, return_index=True)
    appearance = np.empty(dataset.num_users, np.int64)
    appearance[data.user[np.sort(first)]] = np.arange(len(first))
    order = np.lexsort((data.timestamp, appearance[data.user]))
    user, item, liked = data.user[order], data.item[order], data.rating[order] >= LIKED
    ends = np.arange(HISTORY, len(order))
    # A history is of one user if its first entry is the target's user: users stand together.
    ends = ends[user[ends - HISTORY] == user[ends]]
    window = ends[:, None] - HISTORY + np.arange(HISTORY)
    return LabeledExamples(
        user=user[ends],
        history=item[window],
        liked=liked[window],
        mask=np.ones(window.shape, bool),
        target=item[ends],
        label=liked[ends].astype(np.float32),
    )
