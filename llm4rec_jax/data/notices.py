"""Notices: unusual traits of a data set that change what its metrics mean, one line each."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.splits.split import Split, sequences

_ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}|#[0-9]{1,6}|#x[0-9A-Fa-f]{1,5});|<br ?/?>")
# Seconds since 1970 stay below this for three millennia, milliseconds have been above it since 1973.
_MILLISECONDS = 1e11


class Notice(NamedTuple):
    """An unusual trait of the data.

    Attributes:
        name: short name, for files and tables.
        message: one line with counts.
        key: the configuration key that changes it.
    """

    name: str
    message: str
    key: str


def notices(
    split: Split,
    *,
    texts: Sequence[str] | None = None,
    tokens: Tokens | None = None,
    max_tokens: int | None = None,
    unknown_token: int | None = None,
) -> list[Notice]:
    """Lists what is unusual about a split and its texts, before anything is trained on it.

    Args:
        split: the split.
        texts: text of each item [I], if items are read as texts.
        tokens: tokens of these texts.
        max_tokens: number of tokens that texts were cut to.
        unknown_token: id of the token that stands for unknown words.

    Returns:
        The notices, interactions first.

    Example:
        >>> import polars as pl
        >>> from llm4rec_jax.data.interactions import Dataset, Interactions
        >>> from llm4rec_jax.data.splits.protocols import leave_one_out
        >>> data = Interactions(np.zeros(4, np.int32), np.array([0, 1, 2, 0], np.int32), timestamp=np.arange(4))
        >>> tables = pl.DataFrame({"item_id": list("abc")}), pl.DataFrame({"user_id": ["u"]})
        >>> [notice.name for notice in notices(leave_one_out(Dataset("tiny", data, *tables)))]
        ['repeated_pairs', 'repeated_targets']
    """
    unusual = [*_about_interactions(split), *_about_targets(split)]
    if texts is not None:
        unusual += _about_texts(texts)
    if tokens is not None:
        unusual += _about_tokens(tokens, max_tokens, unknown_token)
    return unusual


def _about_interactions(split: Split) -> Iterator[Notice]:
    dataset, data = split.dataset, split.dataset.interactions
    pairs = np.unique(data.user * np.int64(dataset.num_items) + data.item).size
    if pairs < len(data):
        yield Notice(
            "repeated_pairs",
            f"{len(data) - pairs:,} of {len(data):,} rows repeat a user-item pair",
            "data.deduplicate",
        )
    if data.timestamp is None:
        return
    if split.order == "time":
        order = np.lexsort((data.timestamp, data.user))
        ends = sequences(dataset, order).offsets[1:]
        last = ends[np.bincount(data.user, minlength=dataset.num_users) >= 2] - 1
        time = data.timestamp[order]
        tied = int((time[last] == time[last - 1]).sum())
        if tied > 0.05 * len(last):
            yield Notice(
                "equal_times",
                f"the last two times of {tied:,} of {len(last):,} users are equal: the order of the file decides which "
                "interaction is the last",
                "data.split_options.order",
            )
    size = np.abs(data.timestamp)
    milliseconds = int((size >= _MILLISECONDS).sum())
    if 0 < milliseconds < len(data) and (size[size < _MILLISECONDS] > _MILLISECONDS / 1000).any():
        yield Notice(
            "mixed_time_units",
            f"{milliseconds:,} of {len(data):,} times look like milliseconds and the others like seconds: their order "
            "is wrong",
            "data.options.timestamp",
        )


def _about_targets(split: Split) -> Iterator[Notice]:
    data, num_items = split.dataset.interactions, split.dataset.num_items
    trained = np.bincount(data.item[split.train], minlength=num_items) > 0
    # Items that are unknown by design, as in a split by cold items, are no surprise.
    unseen = int((split.known & ~trained)[data.item[split.test]].sum())
    if unseen > 0.05 * len(split.test):
        yield Notice(
            "unseen_targets",
            f"{unseen:,} of {len(split.test):,} test targets are items without a training interaction",
            "data.k_core",
        )
    candidates = split.candidates("test")
    untouched = int((candidates & (np.bincount(data.item, minlength=num_items) == 0)).sum())
    if untouched > 0.05 * candidates.sum():
        yield Notice(
            "untouched_candidates",
            f"{untouched:,} of {int(candidates.sum()):,} candidates have no interaction at all",
            "evaluation.candidates",
        )
    share = split.statistics()["test_repeated_share"]
    if share > 0.01:
        yield Notice(
            "repeated_targets",
            f"{share:.1%} of the test targets are in the user's history already",
            "evaluation.repeats",
        )
    pairs = data.user[split.test] * np.int64(num_items) + data.item[split.test]
    if (twice := len(pairs) - np.unique(pairs).size) > 0:
        yield Notice(
            "duplicate_targets",
            f"{twice:,} of {len(pairs):,} test targets repeat a target of the same user: each counts once",
            "data.deduplicate",
        )


def _about_texts(texts: Sequence[str]) -> Iterator[Notice]:
    total = len(texts)
    if empty := sum(not text.strip() for text in texts):
        yield Notice("empty_texts", f"{empty:,} of {total:,} items have no text", "data.options.no_text")
    if equal := total - len(set(texts)):
        yield Notice("equal_texts", f"{equal:,} of {total:,} items have the text of another item", "text.item")
    entities = [match.group() for text in texts if (match := _ENTITY.search(text))]
    if entities:
        yield Notice(
            "html_entities",
            f"{len(entities):,} of {total:,} texts hold HTML such as {entities[0]!r}",
            "data.options.unescape_html",
        )


def _about_tokens(tokens: Tokens, max_tokens: int | None, unknown_token: int | None) -> Iterator[Notice]:
    if max_tokens is not None:
        # A text that has exactly as many tokens cannot be told from one that was cut.
        cut = int((tokens.lengths >= max_tokens).sum())
        if cut > 0.01 * len(tokens.lengths):
            yield Notice(
                "cut_texts",
                f"{cut:,} of {len(tokens.lengths):,} texts fill all {max_tokens} tokens and may be cut",
                "text.max_tokens",
            )
    if unknown_token is not None:
        real = np.arange(tokens.ids.shape[1]) < tokens.lengths[:, None]
        unknown = int((real & (tokens.ids == unknown_token)).sum())
        if unknown > 0.01 * real.sum():
            yield Notice(
                "unknown_tokens",
                f"{unknown / real.sum():.1%} of the tokens of the items' texts are unknown to the tokenizer",
                "encoder.path",
            )
