"""Recommendations for one user, and the items that a person means by ids or titles."""

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.inference.scorer import Scorer


class Recommendation(NamedTuple):
    """One recommended item: its row in the item table, and its score."""

    item: int
    score: float


def recommend(
    scorer: Scorer, history: Sequence[int], k: int, user: int, exclude: Iterable[int] = ()
) -> list[Recommendation]:
    """Returns the k items with the highest scores that are not in the history.

    Args:
      scorer: A trained recommender or a baseline.
      history: Rows of the item table, the most recent last.
      k: Number of items; all that are left when there are fewer.
      user: Row of the user table; its length stands for somebody who isn't in it.
      exclude: Rows of further items that are not recommended.

    Raises:
      ValueError: a score is NaN or infinite.
    """
    scores = score_items(scorer, history, user)
    left_out = {*history, *exclude}
    scores[list(left_out)] = -np.inf
    order = np.argsort(-scores, kind="stable")[: min(k, len(scores) - len(left_out))]
    return [Recommendation(int(i), float(scores[i])) for i in order]


def score_items(scorer: Scorer, history: Sequence[int], user: int) -> np.ndarray:
    """Returns the scores [I] of all items for one user.

    Args:
      scorer: A trained recommender or a baseline.
      history: Rows of the item table, the most recent last.
      user: Row of the user table; its length stands for somebody who isn't in it.

    Raises:
      ValueError: a score is NaN or infinite.
    """
    item_embeddings = scorer.item_embeddings()
    score_matrix, params = scorer.head
    read = np.asarray(history, np.int32)
    # The history stands in the row of its user; everybody else's is empty.
    offsets = np.array([0] * (user + 1) + [len(read)], np.int64)
    user_embeddings = scorer.user_embeddings(item_embeddings, Sequences(offsets, read, None, None), np.array([user]))
    scores = np.array(jax.jit(score_matrix)(params, user_embeddings, item_embeddings)[0], np.float32)
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} scores are NaN or infinite: the model has diverged")
    return scores


class Named(NamedTuple):
    """The rows of the items that were named, and a notice for each name that several items have."""

    rows: list[int]
    notices: list[str]


def normalize(title: str) -> str:
    """Returns a title without what a typist cannot see: letter case, Unicode form, and white space around and within.

    Example:
      >>> normalize("  Ame\\u0301lie ") == normalize("AM\\u00c9LIE")
      True
    """
    return " ".join(unicodedata.normalize("NFKC", title).casefold().split())


def find_items(names: Sequence[str], ids: Sequence[str], titles: Sequence[str]) -> Named:
    """Returns the rows of the items with these ids or titles.

    An id comes before a title, an exact title before one that is equal after `normalize`, the first row before others.

    Raises:
      ValueError: a name is unknown; the message lists five titles near it.

    Example:
      >>> find_items(["i2", "amelie; or not "], ["i1", "i2"], ["Amelie; or not", "Alien"]).rows
      [1, 0]
    """
    by_id = {name: [row] for row, name in enumerate(ids)}
    exact: dict[str, list[int]] = {}
    normal: dict[str, list[int]] = {}
    for row, title in enumerate(titles):
        exact.setdefault(title, []).append(row)
        normal.setdefault(normalize(title), []).append(row)
    rows, notices = [], []
    for name in names:
        fitting = by_id.get(name.strip()) or exact.get(name) or normal.get(normalize(name))
        if fitting is None:
            near = difflib.get_close_matches(normalize(name), list(normal), n=5, cutoff=0.4)
            hint = f": near it are {', '.join(repr(titles[normal[title][0]]) for title in near)}" if near else ""
            raise ValueError(f"unknown title or id {name.strip()!r}{hint}; give a title of the data, or an item's id")
        rows.append(fitting[0])
        if len(fitting) > 1:
            others = ", ".join(ids[row] for row in fitting[1:6])
            notices.append(
                f"{name.strip()!r} is the title of {len(fitting)} items: took {ids[fitting[0]]}, not {others}"
            )
    return Named(rows, notices)
