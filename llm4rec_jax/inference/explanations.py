"""Explanations of recommendations in words, written by a language model about titles of the user's history."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.inference.generate.generator import Generator
from llm4rec_jax.inference.generate.likelihood import AnswerScorer
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.peft.registry import create

BESIDE = "A user liked {title}. The same user also liked"
REASON = 'A user liked {evidence}. "{title}" is a good recommendation for this user, because'


class Explanation(NamedTuple):
    """An explanation of a recommendation.

    Attributes:
      evidence: Titles of the history after which the recommended title is likeliest, the first most of all.
      text: Sentence that the language model wrote about them. It is no account of how the recommender decided.
    """

    evidence: list[str]
    text: str


def explain(
    decoder: Encoder,
    params: Any,
    words: Any,
    mesh: Mesh,
    history: Sequence[str],
    titles: Sequence[str],
    *,
    num_evidence: int = 3,
    max_new_tokens: int = 40,
) -> list[Explanation]:
    """Explains recommendations in words.

    Evidence of a title are those of the history after each of which the language model finds it likeliest. Then the
    model goes on, greedily, with a sentence that names the evidence and the title.

    Args:
      decoder: A decoder, loaded with `language_head=True`.
      params: Its parameters.
      words: Its tokenizer.
      mesh: The devices.
      history: Titles that the user has had.
      titles: Titles that are recommended.
      num_evidence: Number of titles of the history that an explanation is about.
      max_new_tokens: Number of tokens after which a sentence is cut.

    Returns:
      An explanation of each title.

    Raises:
      ValueError: The history is empty.
    """
    if not history:
        raise ValueError("the history is empty, so that nothing explains a recommendation: give some titles")
    known = list(dict.fromkeys(history))
    answers = [words(f" {title}", add_special_tokens=False)["input_ids"] for title in titles]
    score = AnswerScorer(decoder, create("frozen"), mesh, answers)
    after = score((params, {}), _tokens(words, [BESIDE.format(title=title) for title in known]))
    best = np.argsort(-after, axis=0, kind="stable")[:num_evidence]
    evidence = [[known[row] for row in column] for column in best.T]
    prompts = _tokens(
        words, [REASON.format(evidence=", ".join(e), title=title) for e, title in zip(evidence, titles, strict=True)]
    )
    mask = np.arange(prompts.ids.shape[1]) < prompts.lengths[:, None]
    made = Generator(decoder).greedy((params, {}), prompts.ids, mask, max_new_tokens)
    texts = words.batch_decode(
        [ids[:length] for ids, length in zip(np.asarray(made.ids), np.asarray(made.lengths), strict=True)],
        skip_special_tokens=True,
    )
    return [Explanation(e, f"Because {first_sentence(text)}") for e, text in zip(evidence, texts, strict=True)]


def first_sentence(text: str) -> str:
    """Returns a text up to its first full stop or line break.

    Example:
      >>> first_sentence(" they are by one director. The user")
      'they are by one director.'
    """
    line = text.strip().split("\n")[0]
    sentence, stop, _ = line.partition(". ")
    return sentence + stop.strip()


def _tokens(words: Any, texts: Sequence[str]) -> Tokens:
    """Returns the tokens of texts, padded on the right."""
    ids = [words(text)["input_ids"] for text in texts]
    lengths = np.array([len(row) for row in ids], np.int32)
    table = np.zeros((len(ids), lengths.max()), np.int32)
    for row, tokens in zip(table, ids, strict=True):
        row[: len(tokens)] = tokens
    return Tokens(table, lengths)
