"""Recommendations for one user, and the items that a person means by ids or titles."""

import difflib
import unicodedata
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.batching.buckets import bucket
from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.inference.generative import Ranker
from llm4rec_jax.inference.ranks import rank
from llm4rec_jax.inference.scorer import Scorer


class Recommendation(NamedTuple):
    """One recommended item: its row in the item table, and its score."""

    item: int
    score: float


def recommend(
    scorer: Scorer | Ranker, history: Sequence[int], k: int, user: int, *, mesh: Mesh, exclude: Sequence[int] = ()
) -> list[Recommendation]:
    """Returns the k items with the highest scores that are not in the history: the list that `ranks.rank` gives.

    Args:
      scorer: A trained recommender, a baseline, or a model that generates ids.
      history: Rows of the item table, the most recent last.
      k: Number of items; all that are left when there are fewer.
      user: Row of the user table; its length stands for somebody who isn't in it.
      mesh: The devices.
      exclude: Rows of further items that are not recommended.

    Raises:
      NonFiniteScores: a score is NaN or infinite.
    """
    own, nothing = _one(history), _one([])
    if isinstance(scorer, Ranker):
        allowed = _without(exclude, scorer.num_items)
        top = min(bucket(k), scorer.num_items)
        found = scorer.rank(own, history=own, targets=nothing, candidates=allowed, top=top, everyone=True)
    else:
        item_embeddings, user_embedding = _embeddings(scorer, history, user)
        found = rank(
            *scorer.head,
            lambda users: user_embedding,
            item_embeddings,
            history=own,
            targets=nothing,
            candidates=_without(exclude, len(item_embeddings)),
            mesh=mesh,
            # In buckets, so that another k seldom makes another program.
            top=min(bucket(k), len(item_embeddings)),
            everyone=True,
        )
    best = zip(found.lists[0, :k].tolist(), found.scores[0, :k].tolist(), strict=True)
    return [Recommendation(item, score) for item, score in best if item >= 0]


def recommend_to_users(
    scorer: Scorer | Ranker, histories: Sequences, users: np.ndarray, k: int, *, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `recommend` gives for each of several users of the data.

    Args:
      scorer: A trained recommender, a baseline, or a model that generates ids.
      histories: Items of every user of the user table, in order of time.
      users: Rows [n] of the user table.
      k: Number of items.
      mesh: The devices.

    Returns:
      Rows of the item table [n, k], best first and padded with -1, and their scores [n, k].
    """
    lengths = np.diff(histories.offsets)[users]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    read = np.concatenate([histories.of(user) for user in users]) if len(users) else histories.items[:0]
    own = Sequences(offsets, read, None, None)
    nothing = Sequences(np.zeros(len(users) + 1, np.int64), read[:0], None, None)
    if isinstance(scorer, Ranker):
        top, everything = min(bucket(k), scorer.num_items), _without((), scorer.num_items)
        found = scorer.rank(own, history=own, targets=nothing, candidates=everything, top=top, everyone=True)
    else:
        item_embeddings = scorer.item_embeddings()
        embed = partial(scorer.user_embeddings, item_embeddings, histories)
        found = rank(
            *scorer.head,
            lambda rows: embed(users[rows]),
            item_embeddings,
            history=own,
            targets=nothing,
            candidates=_without((), len(item_embeddings)),
            mesh=mesh,
            top=min(bucket(k), len(item_embeddings)),
            everyone=True,
        )
    return found.lists[:, :k], found.scores[:, :k]


def score_items(
    scorer: Scorer | Ranker, items: Sequence[int], history: Sequence[int], user: int, *, mesh: Mesh
) -> np.ndarray:
    """Returns the scores [n] of the items in rows [n] for one user; see `recommend`."""
    return scorer.score(_in_row(history, user), np.array([user]), np.asarray(items, np.int32)[None], mesh=mesh)[0]


def _without(excluded: Sequence[int], num_items: int) -> np.ndarray:
    """Returns which items are not excluded, bool [I]."""
    allowed = np.ones(num_items, bool)
    allowed[list(excluded)] = False
    return allowed


def _one(items: Sequence[int]) -> Sequences:
    """Returns the items of a single user."""
    return Sequences(np.array([0, len(items)], np.int64), np.asarray(items, np.int32), None, None)


def _embeddings(scorer: Scorer, history: Sequence[int], user: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the item embeddings [I, D], and the user embedding [1, D] of somebody with a history."""
    item_embeddings = scorer.item_embeddings()
    return item_embeddings, scorer.user_embeddings(item_embeddings, _in_row(history, user), np.array([user]))


def _in_row(history: Sequence[int], user: int) -> Sequences:
    """Returns the history in the row of its user; everybody else's is empty."""
    return _one(history)._replace(offsets=np.array([0] * (user + 1) + [len(history)], np.int64))


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
