"""Texts of items and users from templates."""

from datetime import date

import numpy as np
import polars as pl
import pytest

from llm4rec_jax.data.features.text import UserTemplate, item_texts
from llm4rec_jax.data.interactions import DataError


def render(template: str, **fields: object) -> str:
    return item_texts(pl.DataFrame({name: pl.Series([value]) for name, value in fields.items()}), template)[0]


ITEM = {"title": "Toy Story", "year": 1995.0, "genres": ["Animation", "Comedy"]}


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ((), "Toy Story (1995). Animation, Comedy"),
        (("year",), "Toy Story. Animation, Comedy"),
        (("genres",), "Toy Story (1995)."),
        (("title",), "(1995). Animation, Comedy"),
        (("year", "genres"), "Toy Story."),
        (("title", "year"), "Animation, Comedy"),
        (("title", "genres"), "(1995)."),
    ],
)
def test_missing_fields_leave_no_debris_in_the_default_template(missing, expected):
    assert render("{title} ({year}). {genres}", **ITEM | dict.fromkeys(missing)) == expected


@pytest.mark.parametrize(
    ("template", "missing", "expected"),
    [
        ("{a}, {b}, {c}", "b", "A, C"),
        ("{a}, {b}, {c}", "c", "A, B"),
        ("{a}, {b}, {c}", "a", "B, C"),
        ("{a} - {b} - {c}", "b", "A - C"),
        ("{a} - {b} - {c}", "bc", "A"),
        ("{a} / {b} / {c}", "b", "A / C"),
        ("{a} / {b} / {c}", "ab", "C"),
        ("{a}/{b}/{c}", "c", "A/B"),
        ("{a} {b} {c}", "b", "A C"),
        ("{a}: {b} ({c})", "b", "A (C)"),
        ("{a}: {b}", "b", "A"),
        ("{a}: {b}", "a", "B"),
        ("{a} ${b} {c}", "b", "A C"),
        ('{a} "{b}" {c}', "b", "A C"),
        ("{a} ({b}, {c})", "b", "A (C)"),
        ("{a} ({b}, {c})", "c", "A (B)"),
        ("{a} ({b}, {c})", "bc", "A"),
        ("{a} [from {b} ({c})]", "c", "A [from B]"),
        ("{a} [from {b} ({c})]", "bc", "A"),
        ("{a} ({b}", "b", "A"),
        ("{a} (film) {b}", "b", "A (film)"),
        ("Title: {a}. By: {b}. In: {c}.", "b", "Title: A. In: C."),
        ("Title: {a}. By: {b}. In: {c}.", "c", "Title: A. By: B."),
        ("Title: {a}. By: {b}. In: {c}.", "ab", "In: C."),
        ("Title: {a}\nBy: {b}\nIn: {c}", "b", "Title: A\nIn: C"),
        ("{a}, by {b}, {c}", "b", "A, C"),
        ("{a} by: {b}", "b", "A"),
        ("{a} of {b} in {c}", "b", "A of in C"),
        ("{a}! {b}", "b", "A!"),
        ("A film. {a} {b}{c}", "bc", "A film. A"),
        ("{{{a}}} {b}{c}", "bc", "{A}"),
        ("{a} {{{b}, {c}}}", "bc", "A"),
    ],
)
def test_brackets_labels_and_separators_go_with_empty_fields(template, missing, expected):
    fields = {name: None if name in missing else name.upper() for name in "abc"}
    assert render(template, **fields) == expected
    assert render(template, a="A", b="B", c="C") == template.format(a="A", b="B", c="C")


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_null_and_blank_text_are_empty(empty):
    assert render("{title} ({tag})", title="Toy Story", tag=empty) == "Toy Story"


def test_nan_and_empty_lists_are_empty():
    assert render("{title} ({year})", title="Toy Story", year=float("nan")) == "Toy Story"
    items = pl.DataFrame({"title": ["Heat", "Up"], "genres": [[], [None, "Animation", ""]]})
    assert item_texts(items, "{title}. {genres}") == ["Heat.", "Up. Animation"]


def test_fields_are_never_altered():
    title = " () - [Rec],  . "
    assert render("{title} ({year}). {genres}", title=title, year=None, genres=None) == title + "."
    assert render("{year}, {title}", title=title, year=None) == title
    assert render("{title} ({year})", title="{year}", year=2000) == "{year} (2000)"


def test_values_take_their_format():
    assert render("{year} {price:.2f} {n:03d}", year=1995.0, price=3.14159, n=7) == "1995 3.14 007"
    assert render("{x} {day:%Y} {kind!r}", x=0.5, day=date(1995, 11, 22), kind="a") == "0.5 1995 'a'"
    assert render("{scores:.1f}", scores=[1.0, 2.25]) == "1.0, 2.2"
    items = pl.DataFrame({"kind": pl.Series(["film", "book"], dtype=pl.Categorical), "new": [True, False]})
    assert item_texts(items, "{kind} {new}") == ["film True", "book False"]


def test_an_unknown_field_names_the_nearest_column():
    with pytest.raises(ValueError, match=r"'titel'; did you mean 'title'\? Choose from: title, year, genres"):
        render("{titel}", **ITEM)


@pytest.mark.parametrize(
    ("template", "message"),
    [("{title", "malformed"), ("{}", "without a name"), ("{0}", "without a name"), ("x", "no field")],
)
def test_malformed_templates_are_refused(template, message):
    with pytest.raises(ValueError, match=message):
        render(template, **ITEM)


def test_an_item_without_any_text_is_named_with_a_remedy():
    items = pl.DataFrame({"item_id": ["i7", "i9"], "title": ["Heat", ""], "year": [1995, None]})
    with pytest.raises(DataError, match=r"item 'i9': title, year are all empty.*fill one of them"):
        item_texts(items, "Film: {title} ({year})")


def test_a_value_that_does_not_fit_its_format_is_named():
    items = pl.DataFrame({"item_id": ["i7"], "title": ["Heat"]})
    with pytest.raises(DataError, match=r"item 'i7': field 'title': cannot format 'Heat' as '.2f'"):
        item_texts(items, "{title:.2f}")


def test_user_text_keeps_the_most_recent_items():
    titles = ["Heat", "Up", "Alien"]
    assert UserTemplate()(titles) == "The user watched: Heat; Up; Alien"
    assert UserTemplate(separator=" | ", max_items=2)(titles) == "The user watched: Up | Alien"
    assert UserTemplate(max_items=5)(titles) == "The user watched: Heat; Up; Alien"
    assert UserTemplate()([]) == ""


def test_user_text_takes_columns_of_the_user_table():
    template = UserTemplate("{age} year old {occupation}. Watched: {history}")
    assert template(["Heat"], {"age": 24.0, "occupation": "artist"}) == "24 year old artist. Watched: Heat"
    assert template([], {"age": 24, "occupation": "artist"}) == "24 year old artist."
    assert template(["Heat"], {"age": None, "occupation": None}) == "Watched: Heat"
    with pytest.raises(ValueError, match="'occupation'; did you mean 'ocupation'"):
        template(["Heat"], {"age": 24, "ocupation": "artist"})


def test_user_text_splits_the_history_by_a_mask():
    template = UserTemplate("Liked: {liked}. Disliked: {disliked}.", max_items=3)
    titles = ["Old", "Heat", "Up", "Alien"]
    assert template(titles, liked_mask=[True, True, False, True]) == "Liked: Heat; Alien. Disliked: Up."
    assert template(titles, liked_mask=np.ones(4, bool)) == "Liked: Heat; Up; Alien."
    with pytest.raises(ValueError, match="pass liked_mask"):
        template(titles)
    with pytest.raises(ValueError, match="3 entries for 4 titles"):
        template(titles, liked_mask=[True] * 3)


def test_user_template_refuses_an_empty_history_window():
    with pytest.raises(ValueError, match="max_items"):
        UserTemplate(max_items=0)


def test_instructions_and_prefixes_stay_what_they_are():
    instruction = "Instruct: Given films that a user watched, retrieve the next one\nQuery: "
    assert UserTemplate(f"{instruction}{{history}}")(["Heat", "Jaws"]) == f"{instruction}Heat; Jaws"
    items = pl.DataFrame({"title": ["Heat"], "year": [1995.0], "genres": [["Crime"]]})
    assert item_texts(items, "passage: {title} ({year}). {genres}") == ["passage: Heat (1995). Crime"]
