"""Prompts keep the most recent titles that fit, and one length whatever their neighbours are."""

import numpy as np

from llm4rec_jax.data.features.prompts import PromptTokenizer
from llm4rec_jax.data.features.text import UserTemplate


def words(text: str, truncation: bool = False, max_length: int = 0) -> dict[str, list[int]]:
    ids = [len(word) for word in text.split()]
    return {"input_ids": ids[:max_length] if truncation else ids}


def test_the_oldest_titles_are_dropped():
    titles = ["a", "bb", "ccc dddd eeeee", "ffffff"]
    users = [{"age": "333"}, {"age": "4444"}]
    template = UserTemplate("{age} {history}", separator=" ")
    write = PromptTokenizer(template, titles, users, words, max_tokens=3, width=4, pad_token_id=9)
    tokens = write([np.array([0, 1]), np.array([0, 1, 3]), np.array([0, 2])], np.array([0, 1, 7]))
    assert tokens.ids.tolist() == [[3, 1, 2, 9], [4, 2, 6, 9], [3, 4, 5, 9]]
    assert tokens.lengths.tolist() == [3, 3, 3]
