"""Log-likelihoods of answers after prompts: each text read whole, or the prompt once for all its answers."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.batching.batch import token_group
from llm4rec_jax.data.batching.buckets import text_bucket, text_groups
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.inference.batch_sizes import rows_per_batch
from llm4rec_jax.inference.batched import FixedBatches, map_in_fixed_batches
from llm4rec_jax.inference.generate.cached import CachedDecoder, Weights, check_causal
from llm4rec_jax.models.decoders.cache import Cache, bytes_of_row, take_rows
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.peft.core import Peft, forward
from llm4rec_jax.sharding import place

# Memory that the caches of one batch may take.
CACHE_BYTES = 2**31


class Answered(NamedTuple):
    """Prompts with one answer each.

    Attributes:
      ids, mask: [B, L] tokens of prompt and answer, padded on the right.
      start: [B] number of tokens of the prompt.
      answer, counts: [B, T] tokens of the answer, and 1 where there is one.
      users: rows of the user table [B], on the host only.
    """

    ids: Any
    mask: Any
    start: Any
    answer: Any
    counts: Any
    users: Any = None


def join(prompts: Tokens, answers: Sequence[Sequence[int]], which: np.ndarray, length: int) -> Answered:
    """Puts an answer after each prompt.

    Args:
      prompts: B prompts.
      answers: Tokens of the answers that there are.
      which: [B] number of each prompt's answer.
      length: Number of columns L.

    Example:
      >>> prompts = Tokens(np.array([[5, 6], [7, 0]]), np.array([2, 1]))
      >>> join(prompts, [[1], [2, 3]], np.array([0, 1]), 4).ids.tolist()
      [[5, 6, 1, 0], [7, 2, 3, 0]]
    """
    table, counts = answer_table(answers)
    start, answer, counts = prompts.lengths.astype(np.int32), table[which], counts[which]
    ids = np.pad(prompts.ids, ((0, 0), (0, max(length - prompts.ids.shape[1], 0))))[:, :length].astype(np.int32)
    row, column = np.nonzero(counts)
    ids[row, start[row] + column] = answer[row, column]
    mask = np.arange(length) < (start + counts.sum(1).astype(np.int32))[:, None]
    return Answered(ids * mask, mask, start, answer, counts)


def answer_table(answers: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens [A, T] of answers, padded on the right, and 1 where there is one."""
    longest = max(map(len, answers))
    table = np.array([[*answer, *[0] * (longest - len(answer))] for answer in answers], np.int32)
    return table, (np.arange(longest) < np.array([[len(answer)] for answer in answers])).astype(np.float32)


def log_likelihood(
    encoder: Encoder, method: Peft, weights: Weights, texts: Answered, rngs: dict[str, jax.Array] | None = None
) -> jax.Array:
    """Returns the log-likelihoods [B] of the answers; only logits that predict their tokens are computed."""
    states = forward(encoder, method, *weights, texts.ids, texts.mask, rngs=rngs)
    before = texts.start[:, None] - 1 + jnp.arange(texts.answer.shape[1])
    states = jnp.take_along_axis(states, before[..., None], axis=1)
    logits = forward(encoder, method, *weights, states, apply="logits", rngs=rngs)
    return (_of_tokens(logits, texts.answer) * texts.counts).sum(axis=1)


def _of_tokens(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the log-probabilities [...] of tokens [...] by logits [..., V]."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


class AnswerScorer:
    """Computes the log-likelihood of every answer after every prompt.

    The common beginning of all prompts is read once, and each prompt once for all answers. A method that puts tokens
    in front of a text has each text read whole.

    Args:
      encoder: A decoder, loaded with `language_head=True`.
      method: Parameter-efficient method of the decoder.
      mesh: The devices.
      answers: Tokens of the A answers.
      cached: Whether parts that texts share are read once; None does where the method allows it.

    Raises:
      ValueError: The encoder or the method reads later tokens, or an answer is empty.
    """

    def __init__(
        self, encoder: Encoder, method: Peft, mesh: Mesh, answers: Sequence[Sequence[int]], cached: bool | None = None
    ) -> None:
        check_causal(encoder, method)
        if not all(answers):
            raise ValueError("an answer has no tokens: give each some")
        self._encoder, self._method, self._mesh, self._answers = encoder, method, mesh, answers
        whole = method.adds_tokens if cached is None else not cached
        self._model: Any = None if whole else CachedDecoder(encoder, method)
        self._plain = map_in_fixed_batches(self._read_whole, mesh, texts=True)

    def __call__(self, weights: Weights, prompts: Tokens) -> np.ndarray:
        """Returns log-likelihoods [n, A].

        Args:
          weights: Parameters and delta.
          prompts: The n prompts, none of them empty.
        """
        weights = place(weights, self._mesh)
        if self._model is None:
            return self._one_by_one(weights, prompts)
        common = common_beginning(prompts)
        rest = Tokens(prompts.ids[:, common:], prompts.lengths - common)
        weights, cache = self._begin(weights, prompts.ids[0, :common])
        answers, extra = answer_table(self._answers), max(map(len, self._answers)) - 1
        groups = text_groups(rest.lengths, self._encoder.config.max_position_embeddings - common - extra)
        longest = common + groups[-1][1] + extra
        self._model.check_length(weights, 1, longest)
        scores = np.zeros((len(prompts.lengths), len(self._answers)), np.float32)
        for rows, length in groups:
            fitting = max(CACHE_BYTES // (len(self._answers) * bytes_of_row(self._model.config, longest)), 1)
            batches = self._batches(min(rows_per_batch(self._mesh, length), fitting))
            scores[rows] = batches((weights, cache, *answers), *token_group(rest, rows, length))
        return scores

    @functools.cached_property
    def _begin(self) -> Any:
        return jax.jit(self._model.begin)

    @functools.cached_property
    def _batches(self) -> Any:
        def of_rows(rows: int) -> FixedBatches:
            return map_in_fixed_batches(self._read_shared, self._mesh, texts=True, rows=rows)

        return functools.cache(of_rows)

    def _read_shared(self, params: tuple[Weights, Cache, jax.Array, jax.Array], ids: Any, mask: Any) -> jax.Array:
        """Returns log-likelihoods [b, A] after the ends of prompts [b, L], whose beginning is in the cache."""
        model, (weights, cache, answers, counts) = self._model, params
        rows, (number, longest) = len(ids), answers.shape
        logits, cache, read = model.read_prompts(weights, cache, ids, mask, longest - 1)
        first = logits[:, answers[:, 0]] - jax.nn.logsumexp(logits, axis=1, keepdims=True)
        if longest == 1:
            return first
        each, answer = jnp.repeat(jnp.arange(rows), number), jnp.tile(answers, (rows, 1))
        now = jnp.tile(counts[:, :-1], (rows, 1)) > 0
        read = jnp.concatenate([read[each, : 1 - longest], now], axis=1)
        states, _ = model.read(weights, take_rows(cache, each), answer[:, :-1], read)
        later = _of_tokens(model.logits(weights, states), answer[:, 1:]).reshape(rows, number, -1)
        return first + (later * counts[:, 1:]).sum(axis=2)

    def _read_whole(self, weights: Weights, *texts: Any) -> jax.Array:
        return log_likelihood(self._encoder, self._method, weights, Answered(*texts))

    def _one_by_one(self, weights: Weights, prompts: Tokens) -> np.ndarray:
        number = len(self._answers)
        each = np.repeat(np.arange(len(prompts.lengths)), number)
        which = np.tile(np.arange(number), len(prompts.lengths))
        longest = int(prompts.lengths.max()) + max(map(len, self._answers))
        length = text_bucket(longest, self._encoder.config.max_position_embeddings)
        texts = join(Tokens(prompts.ids[each], prompts.lengths[each]), self._answers, which, length)
        return self._plain(weights, *texts[:-1]).reshape(-1, number)


def common_beginning(prompts: Tokens) -> int:
    """Returns the number of first tokens that all prompts share; at least one token of each is left.

    Example:
      >>> common_beginning(Tokens(np.array([[4, 5, 6], [4, 5, 0]]), np.array([3, 2])))
      1
    """
    shortest = int(prompts.lengths.min()) - 1
    same = (prompts.ids[:, :shortest] == prompts.ids[:1, :shortest]).all(axis=0)
    return int(np.argmin(np.append(same, False)))


def expected_ratings(log_likelihoods: np.ndarray, ratings: Sequence[float]) -> np.ndarray:
    """Predicts ratings as means over the answers of a scale, such as " 1" to " 5", by their probabilities.

    Probabilities are shared out among the answers of the scale. `evaluation.metrics.rmse` and `mae` compare the result
    with ratings that were given.

    Args:
      log_likelihoods: [n, A] of the answers, as `AnswerScorer` returns them.
      ratings: [A] the rating that each answer means.

    Returns:
      [n] predicted ratings.

    Example:
      >>> expected_ratings(np.log([[0.1, 0.3], [0.2, 0.2]]), [1.0, 5.0]).round(6).tolist()
      [4.0, 3.0]
    """
    shifted = np.exp(log_likelihoods - log_likelihoods.max(axis=1, keepdims=True))
    return shifted @ np.asarray(ratings, np.float64) / shifted.sum(axis=1)
