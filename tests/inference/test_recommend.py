"""Items are found by id and title as people write them."""

import unicodedata

import pytest

from llm4rec_jax.inference.recommend import find_items

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
