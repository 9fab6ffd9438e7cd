"""Unusual data is reported once, with counts and the key that changes it; ordinary data is not reported."""

import numpy as np
import polars as pl
import pytest

from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.interactions import Dataset, Interactions
from llm4rec_jax.data.notices import notices
from llm4rec_jax.data.splits.protocols import leave_one_out, ratio
from llm4rec_jax.data.splits.split import Split


def split(
    item: np.ndarray, time: np.ndarray | None = None, num_items: int = 12, make=leave_one_out, **options
) -> Split:
    """Users with the rows of `item` [U, n]; times are distinct by default."""
    users, n = item.shape
    user = np.repeat(np.arange(users, dtype=np.int32), n)
    when = np.arange(user.size) if time is None else time
    data = Interactions(user, item.ravel().astype(np.int32), None, when)
    tables = (
        pl.DataFrame({"item_id": [f"i{i}" for i in range(num_items)]}),
        pl.DataFrame({"user_id": [f"u{u}" for u in range(users)]}),
    )
    return make(Dataset("made", data, *tables), **options)


def ordinary(users: int = 40, n: int = 6) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([rng.permutation(12)[:n] for _ in range(users)])


def named(*args, **options) -> dict[str, tuple[str, str]]:
    return {notice.name: (notice.message, notice.key) for notice in notices(*args, **options)}


def test_ordinary_data_says_nothing():
    texts = [f"title {i}" for i in range(12)]
    tokens = Tokens(np.ones((12, 5), np.int32), np.full(12, 5, np.int32))
    assert named(split(ordinary()), texts=texts, tokens=tokens, max_tokens=6, unknown_token=0) == {}


def test_repeated_pairs_and_targets():
    item = np.repeat(ordinary(), 2, axis=1)
    said = named(split(item))
    assert said["repeated_pairs"] == ("240 of 480 rows repeat a user-item pair", "data.deduplicate")
    assert said["repeated_targets"] == (
        "100.0% of the test targets are in the user's history already",
        "evaluation.repeats",
    )
    said = named(split(item, make=ratio, validation=0.1, test=0.5))
    assert said["duplicate_targets"][0].startswith("120 of 240 test targets repeat a target of the same user")


def test_equal_times_and_mixed_units():
    time = np.full(240, 1_500_000_000)
    message, key = named(split(ordinary(), time))["equal_times"]
    assert message.startswith("the last two times of 40 of 40 users are equal")
    assert key == "data.split_options.order"
    assert "equal_times" not in named(split(ordinary(), time, order="input"))
    time = 1_500_000_000 + np.arange(240)
    time[::4] *= 1000
    assert named(split(ordinary(), time))["mixed_time_units"][0].startswith("60 of 240 times look like milliseconds")


def test_targets_and_candidates_that_training_never_saw():
    item = ordinary()
    item[:10, -1] = 12 + np.arange(10)
    said = named(split(item, num_items=40))
    assert said["unseen_targets"] == ("10 of 40 test targets are items without a training interaction", "data.k_core")
    assert said["untouched_candidates"] == ("18 of 40 candidates have no interaction at all", "evaluation.candidates")


def test_texts():
    texts = ["R&amp;B", "same", "same", " ", *(f"t{i}" for i in range(8))]
    said = named(split(ordinary()), texts=texts)
    assert said == {
        "empty_texts": ("1 of 12 items have no text", "data.options.no_text"),
        "equal_texts": ("1 of 12 items have the text of another item", "text.item"),
        "html_entities": ("1 of 12 texts hold HTML such as '&amp;'", "data.options.unescape_html"),
    }


@pytest.mark.parametrize("padding", [0, 7])
def test_tokens(padding):
    lengths = np.array([4] * 3 + [2] * 9, np.int32)
    ids = np.where(np.arange(4) < lengths[:, None], 5, padding).astype(np.int32)
    ids[:6, 0] = 7
    said = named(split(ordinary()), tokens=Tokens(ids, lengths), max_tokens=4, unknown_token=7)
    assert said == {
        "cut_texts": ("3 of 12 texts fill all 4 tokens and may be cut", "text.max_tokens"),
        "unknown_tokens": ("20.0% of the tokens of the items' texts are unknown to the tokenizer", "encoder.path"),
    }
