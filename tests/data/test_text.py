"""Templates, and tokens against the tokenizer called directly, with caches that are damaged, shared or out of reach."""

import os
import subprocess
import sys
import warnings
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import transformers

from llm4rec_jax.data import text
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.text import UserTemplate, item_texts, tokenise

TEXTS = ["toy story", "", "the story of a toy story toy", "story (1995). unseen"]


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


@pytest.fixture(scope="module")
def word_pieces(tmp_path_factory) -> Path:
    """The folder of a small WordPiece tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "toy",
        "story",
        "the",
        "of",
        "a",
        "un",
        "##seen",
        "(",
        ")",
        ".",
    ]
    vocabulary = folder / "words.txt"
    vocabulary.write_text("\n".join(words))
    transformers.BertTokenizer(vocab=str(vocabulary)).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(word_pieces: Path):
    return text.tokenizer(word_pieces)


def cached(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("max_length", [3, 5, 64])
def test_tokens_are_those_of_the_tokenizer(tokenizer, tmp_path, max_length):
    tokens = tokenise(TEXTS, tokenizer, max_length, tmp_path)
    expected = tokenizer(TEXTS, truncation=True, max_length=max_length, padding=True, return_tensors="np")
    np.testing.assert_array_equal(tokens.ids, expected["input_ids"])
    np.testing.assert_array_equal(tokens.lengths, expected["attention_mask"].sum(1))
    assert tokens.ids.dtype == tokens.lengths.dtype == np.int32
    last = tokens.ids[np.arange(len(TEXTS)), tokens.lengths - 1]
    assert (last == tokenizer.sep_token_id).all()
    again = tokenise(TEXTS, tokenizer, max_length, tmp_path)
    np.testing.assert_array_equal(again.ids, tokens.ids)
    np.testing.assert_array_equal(again.lengths, tokens.lengths)


def test_batches_of_texts_are_joined(tokenizer, tmp_path, monkeypatch):
    whole = tokenise(TEXTS, tokenizer, 8, tmp_path / "whole")
    monkeypatch.setattr(text, "_ENCODE_AT_ONCE", 3)
    np.testing.assert_array_equal(tokenise(TEXTS, tokenizer, 8, tmp_path / "parts").ids, whole.ids)


def test_without_a_padding_token_zero_pads(tokenizer, tmp_path):
    padded = tokenise(TEXTS, tokenizer, 8, tmp_path)
    tokenizer.pad_token = None
    np.testing.assert_array_equal(tokenise(TEXTS, tokenizer, 8, tmp_path).ids, padded.ids)


def test_no_texts_give_no_tokens(tokenizer, tmp_path):
    tokens = tokenise([], tokenizer, 8, tmp_path)
    assert tokens.ids.shape == (0, 0)
    assert tokens.lengths.shape == (0,)


def test_max_length_must_leave_room_for_text(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="2 special tokens"):
        tokenise(TEXTS, tokenizer, 2, tmp_path)


def test_the_second_call_reads_the_cache(tokenizer, tmp_path, monkeypatch):
    tokens = tokenise(TEXTS, tokenizer, 8, tmp_path)
    monkeypatch.setattr(text, "_encode", None)
    np.testing.assert_array_equal(tokenise(TEXTS, tokenizer, 8, tmp_path).ids, tokens.ids)
    with np.load(cached(tmp_path), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["ids"], tokens.ids)


def test_the_cache_depends_on_texts_tokenizer_and_length(tokenizer, word_pieces, tmp_path):
    tokenise(TEXTS, tokenizer, 8, tmp_path)
    tokenizer(TEXTS, truncation=True, max_length=4, padding=True)
    tokenise(TEXTS, tokenizer, 8, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    tokenise(TEXTS, tokenizer, 9, tmp_path)
    tokenise(TEXTS[1:], tokenizer, 8, tmp_path)
    tokenise(["".join(TEXTS)], tokenizer, 8, tmp_path)
    tokenizer.add_tokens(["unseen"])
    changed = tokenise(TEXTS, tokenizer, 8, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    assert tokenizer.convert_tokens_to_ids("unseen") in changed.ids


def damaged(content: bytes) -> list[bytes]:
    rng = np.random.default_rng(0)
    variants = [b"", content[:10], content[:-1], content[: len(content) // 2], content + b"x"]
    for position in rng.integers(len(content), size=20):
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.integers(8)
        variants.append(bytes(flipped))
    return variants


def test_a_damaged_cache_is_rebuilt_with_a_warning(tokenizer, tmp_path):
    tokens = tokenise(TEXTS, tokenizer, 8, tmp_path)
    path = cached(tmp_path)
    content = path.read_bytes()
    for variant in damaged(content):
        path.write_bytes(variant)
        with pytest.warns(UserWarning, match=rf"{path.name} are damaged"):
            found = tokenise(TEXTS, tokenizer, 8, tmp_path)
        np.testing.assert_array_equal(found.ids, tokens.ids)
        np.testing.assert_array_equal(found.lengths, tokens.lengths)
        assert path.read_bytes() == content


def test_the_cache_of_other_texts_under_this_name_is_not_taken(tokenizer, tmp_path):
    tokenise(TEXTS, tokenizer, 8, tmp_path)
    path = cached(tmp_path)
    tokenise(TEXTS[:1], tokenizer, 8, tmp_path / "other")
    cached(tmp_path / "other").replace(path)
    with pytest.warns(UserWarning, match="damaged"):
        assert len(tokenise(TEXTS, tokenizer, 8, tmp_path).ids) == len(TEXTS)


def test_a_folder_out_of_reach_is_done_without(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="not cached") as caught:
        tokens = tokenise(TEXTS, tokenizer, 8, tmp_path / "file" / "tokens")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert len(tokens.ids) == len(TEXTS)


def test_a_failed_write_leaves_nothing_behind(tokenizer, tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left"):
        tokenise(TEXTS, tokenizer, 8, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_default_cache_follows_xdg(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokenise(TEXTS, tokenizer, 8)
    assert cached(tmp_path / "llm4rec_jax" / "tokens").suffix == ".npz"


def test_an_absent_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer at .*tokenizer\.json"):
        text.tokenizer(tmp_path)


WRITER = """
import pathlib, sys
import numpy as np
from llm4rec_jax.data import text
path, fill = pathlib.Path(sys.argv[1]), int(sys.argv[2])
tokens = text.Tokens(np.full((500, 20), fill, np.int32), np.full(500, 20, np.int32))
for _ in range(60):
    text._write(path, "key", tokens)
    found = text._read(path, "key")
    assert found is not None and np.unique(found.ids).tolist() in ([1], [2])
"""


def run(script: str, *arguments: str) -> subprocess.Popen[str]:
    inherited = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        env=inherited,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_two_processes_write_one_cache(tmp_path):
    writers = [run(WRITER, str(tmp_path / "key.npz"), fill) for fill in ("1", "2")]
    for writer in writers:
        output, _ = writer.communicate(timeout=60)
        assert writer.returncode == 0, output
    assert [path.name for path in tmp_path.iterdir()] == ["key.npz"]


FORKER = """
import os, sys
from llm4rec_jax.data import text
tokenizer = text.tokenizer(sys.argv[1])
texts = ["toy story of a toy"] * 2000
text.tokenise(texts, tokenizer, 8, sys.argv[2])
child = os.fork()
if not child:
    text.tokenise(texts[1:], tokenizer, 8, sys.argv[2])
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_after_tokenising_neither_warns_nor_hangs(word_pieces, tmp_path):
    forker = run(FORKER, str(word_pieces), str(tmp_path))
    output, _ = forker.communicate(timeout=60)
    assert (forker.returncode, output) == (0, "")


def test_nothing_warns_when_all_is_well(tokenizer, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenise(TEXTS, tokenizer, 8, tmp_path)
        tokenise(TEXTS, tokenizer, 8, tmp_path)
