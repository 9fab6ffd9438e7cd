"""Tokens against the tokenizer called directly, with caches that are damaged, shared or out of reach."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import transformers

from llm4rec_jax.data.features import tokens as tokens_module
from llm4rec_jax.data.features.tokens import tokenise, tokenizer_fingerprint

TEXTS = ["toy story", "", "the story of a toy story toy", "story (1995). unseen"]


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
    return tokens_module.tokenizer(word_pieces)


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


def test_a_folder_is_loaded_only_when_there_is_something_to_tokenise(tokenizer, word_pieces, tmp_path, monkeypatch):
    expected = tokenise(TEXTS, tokenizer, 8, tmp_path / "loaded")
    first = tokenise(TEXTS, word_pieces, 8, tmp_path / "folder")
    np.testing.assert_array_equal(first.ids, expected.ids)
    loads = []
    monkeypatch.setattr(tokens_module, "tokenizer", lambda folder: loads.append(folder) or tokenizer)
    np.testing.assert_array_equal(tokenise(TEXTS, word_pieces, 8, tmp_path / "folder").ids, expected.ids)
    assert not loads
    tokenise(TEXTS, word_pieces, 7, tmp_path / "folder")
    tokenise(TEXTS[1:], word_pieces, 8, tmp_path / "folder")
    changed = shutil.copytree(word_pieces, tmp_path / "changed")
    settings = changed / "tokenizer.json"
    settings.write_text(settings.read_text() + " ")
    tokenise(TEXTS, changed, 8, tmp_path / "folder")
    assert len(loads) == 3
    with pytest.raises(ValueError, match="max_length 2 leaves no room"):
        tokenise(TEXTS, word_pieces, 2, tmp_path / "folder")


def test_batches_of_texts_are_joined(tokenizer, tmp_path, monkeypatch):
    whole = tokenise(TEXTS, tokenizer, 8, tmp_path / "whole")
    monkeypatch.setattr(tokens_module, "_ENCODE_AT_ONCE", 3)
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
    monkeypatch.setattr(tokens_module, "encode", None)
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
    with pytest.raises(ValueError, match=r"holds no tokenizer .*tokenizer\.json"):
        tokens_module.tokenizer(tmp_path)


WRITER = """
import pathlib, sys
import numpy as np
from llm4rec_jax.data import cache
path, fill = pathlib.Path(sys.argv[1]), int(sys.argv[2])
for _ in range(60):
    cache.write(path, "key", {"ids": np.full((500, 20), fill, np.int32)})
    found = cache.read(path, "key")
    assert found is not None and np.unique(found["ids"]).tolist() in ([1], [2])
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
from llm4rec_jax.data.features.tokens import tokenise, tokenizer
encode = tokenizer(sys.argv[1])
texts = ["toy story of a toy"] * 2000
tokenise(texts, encode, 8, sys.argv[2])
child = os.fork()
if not child:
    tokenise(texts[1:], encode, 8, sys.argv[2])
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


class TestFingerprint:
    def test_it_is_of_what_the_tokens_depend_on(self, word_pieces, tmp_path):
        same = shutil.copytree(word_pieces, tmp_path / "same")
        (same / "README.md").write_text("another file")
        (same / "words.txt").unlink(missing_ok=True)
        assert tokenizer_fingerprint(same) == tokenizer_fingerprint(word_pieces)
        (same / "tokenizer.json").write_text((same / "tokenizer.json").read_text().replace('"story"', '"tale"'))
        assert tokenizer_fingerprint(same) != tokenizer_fingerprint(word_pieces)

    def test_a_folder_without_a_vocabulary_is_refused(self, tmp_path):
        # transformers makes a tokenizer of it, to which every word is unknown.
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(ValueError, match=r"holds no tokenizer \(none of tokenizer\.json, .*copy the files"):
            tokenizer_fingerprint(tmp_path)
