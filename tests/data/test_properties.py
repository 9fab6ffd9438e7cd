"""Properties of sources, templates, splits and samplers that hold for every input, by Hypothesis."""

import csv
import json
import math
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4rec_jax.data.batching.negatives import NegativeSampler
from llm4rec_jax.data.features.text import UserTemplate, item_texts
from llm4rec_jax.data.interactions import DataError, Dataset, Interactions
from llm4rec_jax.data.sources import load
from llm4rec_jax.data.splits.leakage import assert_no_leakage
from llm4rec_jax.data.splits.protocols import SPLITS, few_shot
from llm4rec_jax.data.splits.split import Sequences, Split, times
from tests.data.splits.test_protocols import PHASES, check_sequences
from tests.helpers import mutations

# Anything but control characters, which ids are refused for, and halves of characters.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
ID = TEXT.filter(lambda text: bool(text.strip()))
RATING = st.floats(-10, 10, width=32)
TIME = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e9, 1e9)
EVENTS = st.lists(st.tuples(ID, ID, RATING, TIME, TEXT), min_size=1, max_size=12)
NAMES = ("user_id", "item_id", "rating", "timestamp", "title")
Made = TypeVar("Made")


def attempt(make: Callable[[], Made], error: type[ValueError] = ValueError) -> tuple[Made | None, str]:
    """Returns the object, or None and the message of its refusal; any other error fails the test."""
    try:
        return make(), ""
    except error as refused:
        return None, str(refused)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def write(path: Path, events: list[tuple[Any, ...]]) -> None:
    match path.suffix:
        case ".parquet":
            columns = dict(zip(NAMES, zip(*events, strict=True), strict=True))
            pl.DataFrame({**columns, "timestamp": list(map(float, columns["timestamp"]))}).write_parquet(path)
        case ".jsonl":
            lines = [json.dumps({**dict(zip(NAMES, e, strict=True)), "timestamp": float(e[3])}) for e in events]
            path.write_text("\n".join(lines))
        case suffix:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, delimiter={".csv": ",", ".tsv": "\t"}[suffix], lineterminator="\n")
                writer.writerows([NAMES, *events])


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@given(events=EVENTS)
def test_a_table_is_read_as_it_was_written(folder, suffix, events):
    path = folder / f"d.{suffix}"
    write(path, events)
    quoted = {"quoted": True} if suffix == "tsv" else {}
    dataset = load("table", path, rating="rating", timestamp="timestamp", item_columns={"title": "title"}, **quoted)
    events = [(user.strip(), item.strip(), *rest) for user, item, *rest in events]
    assert mutations.rows(dataset) == [(user, item, rating, time) for user, item, rating, time, _ in events]
    # The first row of an item describes it.
    titles = dict(reversed([(item, title) for _, item, _, _, title in events]))
    assert dict(dataset.items.select("item_id", "title").iter_rows()) == titles


@given(
    st.lists(st.lists(st.from_regex(r"[^\W_]{1,3}", fullmatch=True), min_size=2, max_size=6), min_size=1, max_size=5)
)
def test_sequences_are_read_as_they_were_written(folder, lines):
    path = folder / "s.txt"
    path.write_text("\n".join(map(" ".join, lines)), encoding="utf-8")
    users = [line[0] for line in lines]
    if len(set(users)) < len(users):
        with pytest.raises(DataError, match=r"s.txt, line \d+: duplicate user id"):
            load("sequences", path)
        return
    expected = [(user, item, None, float(at)) for user, *items in lines for at, item in enumerate(items)]
    assert mutations.rows(load("sequences", path)) == expected


HEADERS = {"csv": "user_id,item_id,rating\n", "tsv": "user_id\titem_id\trating\n", "jsonl": ""}
JSON = st.recursive(
    st.sampled_from(["u", "i", 1, 2.5, None, True]), lambda inner: st.lists(inner, max_size=2), max_leaves=3
)
LINES = {
    "csv": st.text('ui1,,\n" .5e-\r', max_size=30),
    "tsv": st.text('ui1\t\t\n" .5e-\r', max_size=30),
    "jsonl": st.lists(
        st.dictionaries(st.sampled_from(NAMES[:3]), JSON).map(json.dumps) | st.text('{}[]:"ui1, \n', max_size=8),
        max_size=4,
    ).map("\n".join),
}


@pytest.mark.parametrize("suffix", HEADERS)
@given(data=st.data())
def test_any_file_is_read_as_by_a_plain_reader_or_refused_by_name(folder, suffix, data):
    path = folder / f"any.{suffix}"
    path.write_text(HEADERS[suffix] + data.draw(LINES[suffix]), newline="")
    dataset, refused = attempt(lambda: load("table", path, rating="rating"), DataError)
    if dataset is None:
        assert f"any.{suffix}" in refused
        return
    found = mutations.rows(dataset)
    if suffix == "jsonl":
        records = mutations.json_lines(path)
    else:
        records = mutations.delimited(path, "," if suffix == "csv" else "\t", quoted=suffix == "csv")
    assert found == mutations.plain(records, time="none")


LITERAL = st.text("()[] .,;:-\nxy", max_size=4).map(lambda text: text.replace("{", "{{").replace("}", "}}"))
FIELDS = ("a", "b", "c")
PIECES = st.lists(LITERAL | st.sampled_from([f"{{{name}}}" for name in FIELDS]), min_size=1, max_size=9).map("".join)
VALUES = st.fixed_dictionaries({name: st.none() | st.just("") | st.text("PQR", min_size=1) for name in FIELDS})


def in_order(part: str, whole: str) -> bool:
    left = iter(whole)
    return all(character in left for character in part)


@given(PIECES, VALUES)
def test_a_template_says_what_there_is_in_its_order_and_nothing_else(template, values):
    used = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    table = pl.DataFrame({name: pl.Series([value], dtype=pl.String) for name, value in values.items()})
    if not any(values[name] for name in used):
        with pytest.raises(ValueError, match="all empty" if used else "no field"):
            item_texts(table, template)
        return
    (text,) = item_texts(table, template)
    plain = template.format(**{name: value or "" for name, value in values.items()})
    if all(values[name] for name in used):
        assert text == plain
    # Values are of letters that no literal has.
    assert "".join(c for c in text if c in "PQR") == "".join(values[name] or "" for name in used)
    assert in_order(text, plain)


@given(st.text("{}ab!:.0[]xrs>", max_size=12), TEXT)
def test_any_template_is_written_or_refused(template, value):
    texts, refused = attempt(lambda: item_texts(pl.DataFrame({"a": [value], "b": [1.5]}), template))
    assert "template" in refused if texts is None else len(texts) == 1


@given(st.lists(TEXT, max_size=6), st.data())
def test_a_history_is_told_whole_and_each_title_on_its_side(titles, data):
    liked = data.draw(st.lists(st.booleans(), min_size=len(titles), max_size=len(titles)))
    most = data.draw(st.integers(1, 7))
    kept = [(title, like) for title, like in zip(titles, liked, strict=True)][-most:]
    told = {name: [t for t, like in kept if like == side and t.strip()] for name, side in (("+", True), ("-", False))}
    for name, field in (("+", "{liked}"), ("-", "{disliked}")):
        text = UserTemplate(field, separator="\n", max_items=most)(titles, liked_mask=liked)
        assert text == "\n".join(told[name])
    text = UserTemplate(separator="\n", max_items=most)(titles)
    every = "\n".join(title for title, _ in kept if title.strip())
    assert text == (f"The user watched: {every}" if every else "")


@st.composite
def datasets(draw: st.DrawFn, distinct: bool = False) -> Dataset:
    """Few users, items and times, with returns to items and ties; `distinct` times have none."""
    users, items = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    pairs = draw(st.lists(st.tuples(st.integers(0, users - 1), st.integers(0, items - 1)), min_size=1, max_size=30))
    when = st.integers(0, 100 if distinct else 4)
    time = draw(st.lists(when, min_size=len(pairs), max_size=len(pairs), unique=distinct))
    user, item = np.array(pairs, np.int32).T
    data = Interactions(user, item, (item % 5).astype(np.float32), np.array(time, np.int64))
    tables = [
        pl.DataFrame({f"{kind}_id": [f"{kind}{i}" for i in range(n)]}) for kind, n in (("item", items), ("user", users))
    ]
    return Dataset("drawn", data, *tables)


SHARE = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0, -0.1, math.nan])
CHOSEN = st.one_of(
    st.just(("leave_one_out", {})),
    st.builds(lambda v, t: ("ratio", {"validation": v, "test": t}), SHARE, SHARE),
    st.builds(lambda v, t: ("global_time", {"validation": v, "test": t}), SHARE, SHARE),
    st.builds(lambda s, seed: ("cold_items", {"share": s, "seed": seed}), SHARE, st.integers(0, 3)),
)
FEW = st.none() | st.tuples(st.integers(0, 4), st.sampled_from(["user", "total"]), st.integers(0, 3))


def split_by(dataset: Dataset, chosen: tuple[str, dict[str, Any]], few: Any, order: str = "time") -> Split:
    split = SPLITS.build(chosen[0], dataset, **chosen[1], order=order)
    return split if few is None else few_shot(split, few[0], per=few[1], seed=few[2])


@given(datasets(), CHOSEN, FEW, st.sampled_from(["time", "input"]))
def test_no_split_reads_what_it_predicts_or_what_comes_after(dataset, chosen, few, order):
    split, _ = attempt(lambda: split_by(dataset, chosen, few, order))
    if split is None:
        return
    check_sequences(split)
    when, user = times(dataset, split.order), dataset.interactions.user
    known = {"validation": split.train, "test": split.train}
    if split.validation_in_history:
        known["test"] = np.concatenate([split.train, split.validation])
    for phase in PHASES:
        assert_no_leakage(dataset, split.history(phase), [split.targets_of(phase)], phase)
        targets = getattr(split, phase)
        assert split.candidates(phase)[dataset.interactions.item[targets]].all()
        if chosen[0] == "cold_items":  # whose histories are of all times
            assert not np.isin(dataset.interactions.item[split.train], dataset.interactions.item[targets]).any()
            continue
        for own in range(dataset.num_users):
            before, after = (rows[user[rows] == own] for rows in (known[phase], targets))
            if len(before) and len(after):
                assert max((when[row], row) for row in before) < min((when[row], row) for row in after)
    assert_no_leakage(dataset, split.training()[0], [split.targets_of(phase) for phase in PHASES], "training")


@given(datasets(distinct=True), CHOSEN, FEW, st.randoms(use_true_random=False))
def test_a_split_by_time_does_not_depend_on_the_order_of_the_rows(dataset, chosen, few, random):
    order = list(range(len(dataset.interactions)))
    random.shuffle(order)
    shuffled = Dataset("drawn", dataset.interactions.take(np.array(order)), dataset.items, dataset.users)

    def content(of: Dataset) -> Any:
        try:
            split = split_by(of, chosen, few)
        except ValueError as error:
            return str(error)
        parts = {name: of.interactions.take(getattr(split, name)).columns() for name in ("train", *PHASES)}
        return (
            split.protocol,
            split.targets.tolist(),
            {n: {c: a.tolist() for c, a in p.items()} for n, p in parts.items()},
        )

    assert content(dataset) == content(shuffled)


@given(st.data())
def test_no_sampler_draws_an_own_or_an_unknown_item(data):
    items = data.draw(st.integers(1, 7))
    known = np.array(data.draw(st.lists(st.booleans(), min_size=items, max_size=items).filter(any)))
    histories = data.draw(st.lists(st.lists(st.integers(0, items - 1), max_size=9), min_size=1, max_size=5))
    popularity = np.array(data.draw(st.lists(st.integers(0, 10**9), min_size=items, max_size=items)))
    alpha = data.draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    seen = Sequences(
        np.cumsum([0, *map(len, histories)]), np.array([i for own in histories for i in own], np.int32), None, None
    )
    left = [set(np.flatnonzero(known)) - set(own) for own in histories]
    if not all(left):
        with pytest.raises(DataError, match=f"user row {left.index(set())} "):
            NegativeSampler(seen, known, popularity, alpha)
        return
    sampler, seed = NegativeSampler(seen, known, popularity, alpha), data.draw(st.integers(0, 9))
    users = np.array(data.draw(st.lists(st.integers(0, len(histories) - 1), min_size=1, max_size=6)))
    drawn = sampler(np.random.default_rng(seed), users, 8)
    assert drawn.shape == (len(users), 8)
    for user, row in zip(users, drawn, strict=True):
        assert set(row.tolist()) <= left[user]
    # Each of several processes draws its rows of the same.
    cut = data.draw(st.integers(0, len(users)))
    parts = [sampler(np.random.default_rng(seed), users, 8, part) for part in (slice(0, cut), slice(cut, None))]
    np.testing.assert_array_equal(np.concatenate(parts), drawn)
