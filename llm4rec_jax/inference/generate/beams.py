"""Beam search as transformers defines it: K running beams, and the K best texts that have ended."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm4rec_jax.models.decoders.cache import Cache, take_rows


class Beams(NamedTuple):
    """Options of a beam search.

    Attributes:
      num_beams: Number of beams K.
      length_penalty: Power of a text's length that its log-likelihood is divided by; above 0 it favours long texts.
      early_stopping: Whether the search of a prompt ends with its K-th text. Otherwise it ends when the best running
        beam, at its present length, scores no better than the worst of K texts.
    """

    num_beams: int
    length_penalty: float = 1.0
    early_stopping: bool = False

    def check(self, vocabulary: int, num_stops: int) -> None:
        """Raises ValueError for a number of beams that a vocabulary has no tokens for."""
        most = vocabulary // max(2, 1 + num_stops)
        if not 0 < self.num_beams <= most:
            raise ValueError(f"the number of beams is {self.num_beams}, must be between 1 and {most}")

    def kept(self, num_stops: int) -> int:
        """Returns the number of candidates that each step keeps, so that K of them have not ended."""
        return max(2, 1 + num_stops) * self.num_beams


class _Texts(NamedTuple):
    """Texts of each prompt, the best first: tokens [B, K, T], lengths [B, K], scores [B, K]; -inf for none."""

    ids: jax.Array
    lengths: jax.Array
    scores: jax.Array

    def best(self, count: int) -> tuple["_Texts", jax.Array]:
        """Returns the texts of the highest scores, and their numbers [B, count]."""
        scores, rows = jax.lax.top_k(self.scores, count)
        ids = jnp.take_along_axis(self.ids, rows[..., None], axis=1)
        return _Texts(ids, jnp.take_along_axis(self.lengths, rows, axis=1), scores), rows


class _State(NamedTuple):
    step: jax.Array
    running: _Texts
    ended: _Texts
    open: jax.Array  # [B], whether a running beam may still become one of the K
    all_end: jax.Array  # whether every candidate of the last step has ended
    slots: jax.Array
    cache: Cache
    logits: jax.Array


def beam_search(
    read: Callable[[Cache, jax.Array, jax.Array], tuple[jax.Array, Cache]],
    logits: jax.Array,
    cache: Cache,
    slots: jax.Array,
    filled: int,
    beams: Beams,
    ends: Callable[[jax.Array], jax.Array],
    num_stops: int,
    pad: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Searches the texts of the highest scores after B prompts.

    Args:
      read: (cache, tokens [B · K], slots [B · K, S]) to the next logits [B · K, V] and the cache.
      logits: [B, V] after the prompts.
      cache: Cache of the prompts, with B rows.
      slots: [B, S] mask of the cache's slots.
      filled: Number of slots that the prompts fill; the others are for new tokens.
      beams: Options.
      ends: Which tokens end a text.
      num_stops: Number of these.
      pad: Token after the end.

    Returns:
      Tokens [B, K, T], lengths [B, K] and scores [B, K], the best first.
    """
    (batch, vocabulary), count, steps = logits.shape, beams.num_beams, slots.shape[1] - filled
    kept = beams.kept(num_stops)
    each = jnp.repeat(jnp.arange(batch), count)
    blank = jnp.full((batch, count, steps), pad, jnp.int32), jnp.zeros((batch, count), jnp.int32)
    none = jnp.full((batch, count), -jnp.inf)

    def goes_on(state: _State) -> jax.Array:
        full = (state.ended.scores > -jnp.inf).all()
        return state.open.any() & ~(full & beams.early_stopping) & ~state.all_end

    def advance(state: _State) -> _State:
        step, running, ended = state.step, state.running, state.ended
        likelihoods = jax.nn.log_softmax(state.logits).reshape(batch, count, vocabulary)
        flat = (running.scores[..., None] + likelihoods).reshape(batch, -1)
        scores, chosen = jax.lax.top_k(flat, kept)
        parent, token = chosen // vocabulary, chosen % vocabulary
        ids = jnp.take_along_axis(running.ids, parent[..., None], axis=1).at[:, :, step].set(token)
        candidates = _Texts(ids, jnp.full((batch, kept), step + 1), scores)
        ending = ends(token) | (step + 1 == steps)

        running, rows = candidates._replace(scores=jnp.where(ending, -jnp.inf, scores)).best(count)
        # Only the first K candidates may end: the others are there so that K go on.
        may_end = ending & (jnp.arange(kept) < count) & state.open[:, None]
        if beams.early_stopping:
            may_end &= ~(ended.scores > -jnp.inf).all(axis=1, keepdims=True)
        normed = jnp.where(may_end, scores / (step + 1.0) ** beams.length_penalty, -jnp.inf)
        both = jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), ended, candidates._replace(scores=normed))
        ended, _ = both.best(count)

        hope = running.scores[:, 0] / (step + 1.0) ** beams.length_penalty
        beams_open = state.open & (hope > ended.scores[:, -1])

        tokens, parent = (jnp.take_along_axis(a, rows, axis=1) for a in (token, parent))
        cache = take_rows(state.cache, (jnp.arange(batch)[:, None] * count + parent).reshape(-1))
        slots = state.slots.at[:, filled + step].set(True)
        logits, cache = read(cache, tokens.reshape(-1), slots)
        return _State(step + 1, running, ended, beams_open, ending.all(), slots, cache, logits)

    first = _Texts(*blank, none.at[:, 0].set(0.0))
    begin = _State(
        jnp.int32(0), first, _Texts(*blank, none), jnp.ones(batch, bool), jnp.array(False),
        slots[each], take_rows(cache, each), logits[each],
    )  # fmt: skip
    ended: Any = jax.lax.while_loop(goes_on, advance, begin).ended
    return ended.ids, ended.lengths, ended.scores
