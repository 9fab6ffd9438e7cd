"""Recommends items, beside the history that they follow from.

    python -m experiments.recommend --workdir=runs/lora --user=42 --k=10
    python -m experiments.recommend --workdir=runs/lora --history="Toy Story; GoldenEye; Twelve Monkeys"

--user takes an id of the data; --history serves somebody who isn't in it: titles, the most recent last.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import rich.console
import rich.table
import rich.text
from absl import flags

from experiments.cli import command
from experiments.cli.console import visible
from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.inference.scorer import Scorer
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.results import restored_scorer

_USER = flags.DEFINE_string("user", None, "A user id of the data.")
_HISTORY = flags.DEFINE_string("history", None, "Titles, parted by semicolons, the most recent last.")
_K = flags.DEFINE_integer("k", 10, "How many items.", lower_bound=1)


class Recommendation(NamedTuple):
    """One recommended item: its row in the item table, and its score."""

    item: int
    score: float


def recommend(scorer: Scorer, history: Sequence[int], k: int, user: int) -> list[Recommendation]:
    """The k items with the highest scores that are not in the history.

    Args:
      scorer: a trained recommender or a baseline.
      history: rows of the item table, the most recent last.
      k: number of items; all items outside the history when there are fewer.
      user: row of the user table; its length stands for somebody who isn't in it.
    """
    item_embeddings = scorer.item_embeddings()
    pairs, params = scorer.head
    read = np.asarray(history, np.int32)
    # The history stands in the row of its user; everybody else's is empty.
    offsets = np.array([0] * (user + 1) + [len(read)], np.int64)
    profile = scorer.user_embeddings(item_embeddings, Sequences(offsets, read, None, None), np.array([user]))
    scores = np.array(jax.jit(pairs)(params, profile, item_embeddings)[0], np.float32)
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} scores are NaN or infinite: the model has diverged")
    scores[read] = -np.inf
    order = np.argsort(-scores, kind="stable")[: min(k, len(scores) - len(set(history)))]
    return [Recommendation(int(i), float(scores[i])) for i in order]


def history_of(assembly: Assembly, user_id: str) -> tuple[int, np.ndarray]:
    """Row and whole history of a user of the data, in order of time. An unknown id is a ValueError."""
    ids = assembly.dataset.users["user_id"].to_list()
    if user_id not in ids:
        raise ValueError(unknown_name("user", user_id, ids))
    user = ids.index(user_id)
    interactions = assembly.dataset.interactions
    (rows,) = np.nonzero(interactions.user == user)
    if interactions.timestamp is not None:
        rows = rows[np.argsort(interactions.timestamp[rows], kind="stable")]
    return user, interactions.item[rows]


def find_titles(assembly: Assembly, titles: Sequence[str]) -> list[int]:
    """Rows of the items with these titles, letter case aside; of an unknown one, a ValueError names the nearest."""
    rows: dict[str, int] = {}
    for row, title in enumerate(assembly.titles):
        rows.setdefault(title.casefold(), row)
    found = []
    for title in titles:
        if (row := rows.get(title.strip().casefold())) is None:
            raise ValueError(unknown_name("title", title.strip(), assembly.titles))
        found.append(row)
    if not found:
        raise ValueError("--history is empty: give titles parted by semicolons")
    return found


def table(titles: Sequence[str], history: Sequence[int], recommended: Sequence[Recommendation]) -> rich.table.Table:
    """The most recent of the history beside what is recommended."""
    result = rich.table.Table(box=None, pad_edge=False)
    for header in ("history, latest first", "recommended", "score"):
        result.add_column(header, justify="right" if header == "score" else "left")
    latest = [titles[i] for i in reversed(history)][: len(recommended)]
    for i, (item, score) in enumerate(recommended):
        # Text: Rich would read "[b]" in a title as markup.
        shown = latest[i] if i < len(latest) else "", titles[item], f"{score:.3f}"
        result.add_row(*(rich.text.Text(visible(text)) for text in shown))
    return result


def main() -> None:
    if (_USER.value is None) == (_HISTORY.value is None):
        raise ValueError("give either --user=ID or --history='title; title'")
    workdir: Path = command.workdir()
    assembly, scorer = restored_scorer(workdir)
    if _USER.value is not None:
        user, history = history_of(assembly, _USER.value)
    else:
        user = assembly.dataset.num_users
        history = np.array(find_titles(assembly, [t for t in (_HISTORY.value or "").split(";") if t.strip()]))
    found = recommend(scorer, history.tolist(), _K.value, user)
    rich.console.Console(width=None).print(table(assembly.titles, history.tolist(), found))


if __name__ == "__main__":
    command.run(main)
