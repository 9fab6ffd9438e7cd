"""Log-likelihoods of many candidate texts after prompts, which share a prompt's keys and values by a trie of tokens."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.batching.batch import token_group
from llm4rec_jax.data.batching.buckets import text_groups
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.inference.batch_sizes import rows_per_batch
from llm4rec_jax.inference.batched import FixedBatches, map_in_fixed_batches
from llm4rec_jax.inference.generate.cached import CachedDecoder, Weights
from llm4rec_jax.inference.generate.likelihood import CACHE_BYTES, common_beginning
from llm4rec_jax.inference.generate.token_trie import build_trie, build_tries
from llm4rec_jax.models.decoders.cache import Cache, bytes_of_row
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.sharding import place


class CandidateScorer:
    """Computes the log-likelihoods of candidate texts after prompts, such as titles after a history.

    A prompt is read once, and so is each token of the trie of its candidates: texts with a common beginning share it.
    The log-likelihoods are those of `AnswerScorer`, which reads every text by itself.

    Args:
      encoder: A decoder, loaded with `language_head=True`.
      method: Parameter-efficient method of the decoder.
      mesh: The devices.
      texts: Tokens of the N texts that there are.
      chunk: Number of tokens of the trie that are read at a time. No result depends on it but by rounding.

    Raises:
      ValueError: The encoder or the method reads later tokens, the method adds tokens, or a text is empty.
    """

    def __init__(
        self, encoder: Encoder, method: Peft, mesh: Mesh, texts: Sequence[Sequence[int]], chunk: int = 64
    ) -> None:
        self._model, self._mesh, self._texts, self._chunk = CachedDecoder(encoder, method), mesh, texts, chunk
        self._most = encoder.config.max_position_embeddings
        self._trie = build_trie(texts, chunk)
        self._begin = jax.jit(self._model.begin)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, [N]."""
        return self._trie.lengths

    def all(self, weights: Weights, prompts: Tokens) -> np.ndarray:
        """Returns the log-likelihoods [n, N] of all texts after n prompts, none of which is empty.

        Args:
          weights: Parameters and delta.
          prompts: The n prompts.
        """
        return self._score(weights, prompts, [array[None] for array in self._trie[:-1]])

    def some(self, weights: Weights, prompts: Tokens, candidates: np.ndarray) -> np.ndarray:
        """Returns the log-likelihoods [n, T] of the texts with the numbers [n, T], T for each prompt."""
        tries = build_tries([[self._texts[i] for i in row] for row in candidates.tolist()], self._chunk // 2)
        return self._score(weights, prompts, (), tries[:-1])

    def _score(
        self, weights: Weights, prompts: Tokens, shared: Sequence[np.ndarray], own: Sequence[np.ndarray] = ()
    ) -> np.ndarray:
        """Returns log-likelihoods [n, T]; tries are arrays [1, …] that all prompts share, or [n, …], one of each."""
        common = common_beginning(prompts)
        rest = Tokens(prompts.ids[:, common:], prompts.lengths - common)
        weights, cache = self._begin(place(weights, self._mesh), prompts.ids[0, :common])
        (_, sees, *_, texts), config = own or shared, self._model.config
        size, slots = sees.shape[2:]
        extra = int(self._trie.lengths.max()) - 1
        groups = text_groups(rest.lengths, self._most - common - extra)
        self._model.check_length(weights, 1, common + groups[-1][1] + extra)
        scores = np.zeros((len(prompts.lengths), texts.shape[1]), np.float32)
        for rows, length in groups:
            # A row needs its cache and the logits of a chunk.
            needed = bytes_of_row(config, common + length + slots) + 8 * size * config.vocab_size
            count = min(rows_per_batch(self._mesh, length), max(CACHE_BYTES // needed, 1))
            tries = (array[rows] for array in own)
            scores[rows] = self._batches(count)((weights, cache, shared), *token_group(rest, rows, length), *tries)
        return scores

    @functools.cached_property
    def _batches(self) -> Any:
        def of_rows(rows: int) -> FixedBatches:
            return map_in_fixed_batches(self._read, self._mesh, texts=True, rows=rows)

        return functools.cache(of_rows)

    def _read(self, params: tuple[Weights, Cache, Any], ids: jax.Array, mask: jax.Array, *own: jax.Array) -> jax.Array:
        """Returns log-likelihoods [b, T] after the ends of prompts [b, L], whose beginning is in the cache."""
        model, (weights, cache, shared) = self._model, params
        # Arrays [1 or b, …]: those of one row serve all prompts.
        tokens, sees, carry, parents, edges, first, texts = own or shared
        rows, slots, path = len(ids), sees.shape[3], carry.shape[2]
        logits, cache, read = model.read_prompts(weights, cache, ids, mask, slots)
        start = read.shape[1] - slots
        each = jnp.arange(rows)[:, None]
        after = logits[each, first] - jax.nn.logsumexp(logits, axis=1, keepdims=True)

        def chunk(cache: Cache, part: tuple[jax.Array, ...]) -> tuple[Cache, jax.Array]:
            tokens, sees, carry, parents, edges = part
            tokens = jnp.broadcast_to(tokens, (rows, tokens.shape[1]))
            prompt = jnp.broadcast_to(read[:, None, :start], (*tokens.shape, start))
            seen = jnp.concatenate([prompt, jnp.broadcast_to(sees, (*tokens.shape, slots))], axis=2)
            # The nodes of the last chunk make room for these, behind the path.
            states, cache = model.read(weights, _filled(cache, start + path), tokens, seen)
            logits = model.logits(weights, states)
            after = logits[each, parents, edges] - jax.nn.logsumexp(logits, axis=2)[each, parents]

            def carried(array: jax.Array) -> jax.Array:
                return array.at[:, start : start + path].set(array[each, start + jnp.maximum(carry, 0)])

            return jax.tree.map(lambda array: carried(array) if array.ndim else array, cache), after

        by_chunk = tuple(jnp.moveaxis(array, 1, 0) for array in (tokens, sees, carry, parents, edges))
        _, later = jax.lax.scan(chunk, _filled(cache, start + path), by_chunk)
        later = jnp.moveaxis(later, 0, 1).reshape(rows, -1)
        of_edges = jnp.concatenate([later, after, jnp.zeros((rows, 1))], axis=1)
        return of_edges[each[..., None], texts].sum(axis=2)


def _filled(cache: Cache, filled: int) -> Cache:
    """Returns the cache as one of which this number of slots is filled."""
    return jax.tree.map(lambda array: array if array.ndim else jnp.int32(filled), cache)
