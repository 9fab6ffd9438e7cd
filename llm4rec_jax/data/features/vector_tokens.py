"""Prompts in which items stand as vectors too: one token for each vector, with an id after those of the vocabulary."""

import re
import string
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.data.features.tokens import Tokens

FIELD = "item_vector"
"""Field of an item template at which the vector of the item stands."""

# Characters for private use, which no text of an item has.
_OPEN, _CLOSE = "\ue000", "\ue001"
_PLACE = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


def has_vector_field(template: str) -> bool:
    """Returns whether an item template has the field {item_vector}.

    Example:
        >>> has_vector_field("{title} {item_vector}"), has_vector_field("{title}")
        (True, False)
    """
    return any(field == FIELD for _, field, _, _ in string.Formatter().parse(template))


def vector_texts(items: pl.DataFrame, template: str) -> list[str]:
    """Writes items as `item_texts` does, with a mark at the field {item_vector} for `tokenise_with_vectors`.

    Args:
        items: the item table [I].
        template: a format string over its columns and {item_vector}.

    Returns:
        The texts [I], each with the row of its item in its marks.
    """
    marks = [f"{_OPEN}{row}{_CLOSE}" for row in range(items.height)]
    return item_texts(items.with_columns(pl.Series(FIELD, marks)), template)


def tokenise_with_vectors(
    texts: Sequence[str], encode: Callable[..., list[list[int]]], vocab_size: int, max_length: int
) -> Tokens:
    """Tokenizes texts with marks of `vector_texts`: the mark of item i becomes the one token `vocab_size` + i.

    The text between two marks is tokenized by itself. Special tokens stand at the beginning of a whole text only.

    Args:
        texts: the texts [n].
        encode: returns the token ids of texts, called as `encode(texts, special)` with or without special tokens.
        vocab_size: number of tokens that the language model has embeddings of.
        max_length: number of tokens after which a text is cut.

    Returns:
        The tokens, padded with 0.

    Raises:
        ValueError: if the tokenizer gives a token of `vocab_size` or more.

    Example:
        >>> def encode(texts, special):
        ...     return [[9] * special + [len(word) for word in text.split()] for text in texts]
        >>> texts = vector_texts(pl.DataFrame({"title": ["Heat", "The Rock"]}), "{title} {item_vector}")
        >>> tokenise_with_vectors(texts, encode, vocab_size=10, max_length=8).ids.tolist()
        [[9, 4, 10, 0], [9, 3, 4, 11]]
    """
    # "A<0>B<7>" is split into "A", "0", "B", "7", "".
    split = [_PLACE.split(text) for text in texts]
    first = encode([pieces[0] for pieces in split], True)
    inner = sorted({piece for pieces in split for piece in pieces[2::2]})
    ids_of = dict(zip(inner, encode(inner, False) if inner else [], strict=True))
    largest = max((max(ids, default=0) for ids in [*first, *ids_of.values()]), default=0)
    if largest >= vocab_size:
        raise ValueError(
            f"the tokenizer gives the token {largest}, and the language model has embeddings of the tokens below "
            f"{vocab_size} only: give the tokenizer of the language model"
        )
    rows = []
    for start, pieces in zip(first, split, strict=True):
        ids = list(start)
        for row, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            ids += [vocab_size + int(row), *ids_of[piece]]
        rows.append(ids[:max_length])
    lengths = np.array([len(ids) for ids in rows], np.int32)
    table = np.zeros((len(rows), lengths.max(initial=0)), np.int32)
    for line, ids in zip(table, rows, strict=True):
        line[: len(ids)] = ids
    return Tokens(table, lengths)
