"""Items are found by id and title as people write them."""

import unicodedata

import numpy as np
import pytest

from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.inference.ranks import NonFiniteScores, rank
from llm4rec_jax.inference.recommend import find_items, recommend, score_items
from llm4rec_jax.inference.scorer import Scorer
from llm4rec_jax.sharding import make_mesh

IDS = ["i1", "i2", "i3", "i4"]
TITLES = ["Face/Off; uncut", "Amélie", "Twins", "Twins"]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("Face/Off; uncut", 0),
        ("  face/off;  UNCUT ", 0),
        (unicodedata.normalize("NFD", "Amélie"), 1),
        ("i4", 3),
    ],
)
def test_a_name_is_found(name, row):
    assert find_items([name], IDS, TITLES) == ([row], [])


def test_of_equal_titles_the_one_that_was_taken_is_named():
    assert find_items(["Twins"], IDS, TITLES) == ([2], ["'Twins' is the title of 2 items: took i3, not i4"])


def test_an_unknown_title_lists_near_ones():
    titles = [f"The Matrix {number}" for number in range(100)]
    with pytest.raises(ValueError, match="unknown title or id 'The Matrx 1': near it are 'The Matrix") as error:
        find_items(["The Matrx 1"], [str(n) for n in range(100)], titles)
    assert str(error.value).count("The Matrix") == 5


class Vectors(Scorer):
    """A scorer whose users are the mean of the items in their history."""

    def __init__(self, items: np.ndarray) -> None:
        self.items = items

    def item_embeddings(self) -> np.ndarray:
        return self.items

    def user_embeddings(self, item_embeddings: np.ndarray, history: Sequences, users: np.ndarray) -> np.ndarray:
        rows = (history.items[history.offsets[user] : history.offsets[user + 1]] for user in users)
        return np.stack([item_embeddings[row].mean(axis=0) for row in rows])

    head = (lambda params, users, items: users @ items.T, None)


HISTORIES = [[3, 8], [2000, 1, 1, 7], [5]]


def test_a_recommendation_is_the_list_of_the_ranking():
    items = np.round(np.random.default_rng(0).normal(size=(3000, 4)) * 2).astype(np.float32)
    scorer, mesh = Vectors(items), make_mesh()
    history = Sequences(np.array([0, 2, 6, 7]), np.concatenate(HISTORIES).astype(np.int32), None, None)
    found = rank(
        *scorer.head,
        lambda users: scorer.user_embeddings(items, history, users),
        items,
        history=history,
        targets=Sequences(np.zeros(4, np.int64), np.zeros(0, np.int32), None, None),
        candidates=np.ones(3000, bool),
        mesh=mesh,
        top=20,
        everyone=True,
    )
    for user, read in enumerate(HISTORIES):
        recommended = recommend(scorer, read, 20, user, mesh=mesh)
        assert [r.item for r in recommended] == found.lists[user].tolist()
        scores = score_items(scorer, [r.item for r in recommended], read, user, mesh=mesh)
        assert [r.score for r in recommended] == scores.tolist() == sorted(scores, reverse=True)
        without = recommend(scorer, read, 20, user, mesh=mesh, exclude=[recommended[0].item])
        assert without[:19] == recommended[1:]


def test_a_list_is_as_long_as_there_are_items():
    scorer = Vectors(np.eye(4, dtype=np.float32))
    assert {r.item for r in recommend(scorer, [0], 10, 0, mesh=make_mesh(), exclude=[2])} == {1, 3}


def test_scores_that_are_not_finite_are_refused():
    scorer = Vectors(np.full((4, 2), np.nan, np.float32))
    with pytest.raises(NonFiniteScores, match="the model has diverged"):
        recommend(scorer, [0], 2, 0, mesh=make_mesh())
