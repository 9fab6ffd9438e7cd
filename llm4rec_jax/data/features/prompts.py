"""Prompts: histories and labelled examples written as texts, and cut to a number of tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llm4rec_jax.data.features.text import UserTemplate
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.labeled import LabeledExamples


class PromptTokenizer:
    """Writes histories as prompts and tokenizes them, dropping the oldest titles of a prompt that is too long.

    Args:
        template: writes a user from the titles of a history and a row of the user table.
        titles: names of the items [I].
        users: rows of the user table [U]; a user outside of it has none of its columns.
        encode: a tokenizer, called with a text.
        max_tokens: largest number of tokens of a prompt.
        width: number of tokens that all prompts are padded to, so that a prompt's vector does not depend on its
            neighbours; max_tokens by default.
        pad_token_id: token that prompts are padded with.

    Example:
        >>> def encode(text, **options):
        ...     return {"input_ids": [len(word) for word in text.split()]}
        >>> write = PromptTokenizer(UserTemplate("saw {history}"), ["Heat", "Big"], [], encode, max_tokens=2)
        >>> write([np.array([0, 1])], np.array([0])).ids.tolist()
        [[3, 3]]
    """

    def __init__(
        self,
        template: UserTemplate,
        titles: Sequence[str],
        users: Sequence[Mapping[str, Any]],
        encode: Callable[..., Any],
        *,
        max_tokens: int,
        width: int | None = None,
        pad_token_id: int = 0,
    ) -> None:
        self._template, self._encode = template, encode
        self._titles, self._users = np.array(titles, dtype=object), users
        self._nobody = dict.fromkeys(users[0]) if users else {}
        self._max_tokens, self._width, self._pad = max_tokens, width or max_tokens, pad_token_id

    def __call__(self, histories: Sequence[np.ndarray], users: np.ndarray) -> Tokens:
        """Returns the tokens of the prompts of users [B]; histories are rows of the item table, the oldest first."""
        ids = [self._fitting(self._titles[items].tolist(), user) for items, user in zip(histories, users, strict=True)]
        lengths = np.array([len(row) for row in ids], np.int32)
        table = np.full((len(ids), self._width), self._pad, np.int32)
        for row, tokens in zip(table, ids, strict=True):
            row[: len(tokens)] = tokens
        return Tokens(table, lengths)

    def _fitting(self, titles: list[str], user: int) -> list[int]:
        """Returns the tokens of the prompt of as many recent titles as fit."""
        row = self._users[user] if user < len(self._users) else self._nobody
        for first in range(max(len(titles), 1)):
            ids = self._encode(self._template(titles[first:], row))["input_ids"]
            if len(ids) <= self._max_tokens:
                return ids
        last = self._template(titles[-1:], row)
        return self._encode(last, truncation=True, max_length=self._max_tokens)["input_ids"]


def rating_prompts(examples: LabeledExamples, titles: list[str], template: str) -> list[str]:
    """Writes the prompt of each labelled example from a template of {liked}, {disliked} and {target}.

    A clause whose fields are empty, such as that of an empty {disliked}, vanishes; see `UserTemplate`.

    Args:
        examples: the n examples.
        titles: names of the items [I].
        template: the template.

    Returns:
        The prompts [n].

    Example:
        >>> history, yes = np.array([[0, 1]]), np.ones((1, 2), bool)
        >>> examples = LabeledExamples(np.array([0]), history, yes, yes, np.array([2]), np.array([1.0]))
        >>> rating_prompts(examples, ["Heat", "Big", "Jaws"], "Liked: {liked}. Will they like {target}?")
        ['Liked: Heat; Big. Will they like Jaws?']
    """
    write = UserTemplate(template, separator="; ")
    prompts = []
    rows = zip(examples.history, examples.liked, examples.mask, examples.target, strict=True)
    for history, liked, mask, target in rows:
        read = [titles[int(item)] for item in history[mask]]
        prompts.append(write(read, {"target": titles[int(target)]}, liked_mask=liked[mask].tolist()))
    return prompts


def fitting_rating_prompts(
    examples: LabeledExamples,
    titles: list[str],
    template: str,
    tokenise: Callable[[list[str]], Tokens],
    max_tokens: int,
    before: str = "",
) -> Tokens:
    """Tokenizes the prompts of labelled examples, without the oldest items of histories that are too long.

    Args:
        examples: the n examples.
        titles: names of the items [I].
        template: as in `rating_prompts`.
        tokenise: tokenizes texts, and cuts none of up to max_tokens + 1 tokens.
        max_tokens: largest number of tokens of a prompt.
        before: text in front of every prompt, such as examples with their answers.

    Raises:
        DataError: if a prompt without any history has more tokens.
    """
    mask, wrong = examples.mask.copy(), np.arange(examples.size)
    written: list[Any] = [None] * examples.size
    while len(wrong):
        shown = examples._replace(mask=mask).take(wrong)
        tokens = tokenise([before + prompt for prompt in rating_prompts(shown, titles, template)])
        for row, ids, length in zip(wrong, tokens.ids, tokens.lengths, strict=True):
            written[row] = ids[:length]
        wrong = wrong[tokens.lengths > max_tokens]
        if len(empty := wrong[~mask[wrong].any(axis=1)]):
            raise DataError(
                f"the prompt of labelled example {empty[0]} has {len(written[empty[0]])} tokens without any history, "
                f"more than the {max_tokens} of max_prompt_tokens: raise it, or shorten the template"
            )
        mask[wrong, mask[wrong].argmax(axis=1)] = False
    lengths = np.array([len(ids) for ids in written], np.int32)
    table = np.zeros((examples.size, lengths.max(initial=0)), np.int32)
    for row, ids in zip(table, written, strict=True):
        row[: len(ids)] = ids
    return Tokens(table, lengths)
