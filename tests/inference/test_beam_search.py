"""Constrained beam search against searches written out one id at a time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.inference.beam_search import beam_search, items_below, scores_of_ids
from llm4rec_jax.semantic_ids import SemanticIds, build_trie

RNG = np.random.default_rng(2)
SIZES = (3, 4, 3)
USERS = 4
# Some ids are of several items.
IDS = SemanticIds(RNG.integers(0, SIZES, (25, 3)).astype(np.int32), SIZES)
ALLOWED = np.arange(25) % 7 != 3
EXCLUDED = np.array([[0, 5, 9, 11], [-1, -1, -1, -1], [24, 1, -1, -1], [*range(4)]])
# A logit for each user, prefix and code.
TABLES = [RNG.normal(size=(USERS, *SIZES[: level + 1])) for level in range(3)]


def next_logits(prefixes):
    level = prefixes.shape[-1]
    users = jnp.arange(USERS)[:, None]
    return jnp.asarray(TABLES[level])[(users, *jnp.moveaxis(prefixes, -1, 0))] + jnp.zeros((*prefixes.shape[:2], 1))


def log_prob(user: int, codes: tuple[int, ...]) -> float:
    total = 0.0
    for level, code in enumerate(codes):
        logits = TABLES[level][(user, *codes[:level])]
        total += logits[code] - np.log(np.exp(logits).sum())
    return total


def open_ids(user: int) -> dict[tuple[int, ...], int]:
    """The ids with an item that the user may be shown, and the number of such items."""
    shown = [i for i in range(25) if ALLOWED[i] and i not in EXCLUDED[user]]
    rows = [tuple(IDS.codes[i].tolist()) for i in shown]
    return {row: rows.count(row) for row in rows}


def by_hand(user: int, beams: int) -> list[tuple[int, ...]]:
    """A beam search over Python tuples."""
    kept = [()]
    for level in range(3):
        real = {row[: level + 1] for row in open_ids(user)}
        grown = [(*prefix, code) for prefix, code in itertools.product(kept, range(SIZES[level]))]
        kept = sorted((g for g in grown if g in real), key=lambda g: -log_prob(user, g))[:beams]
    return kept


def found(beams: int, dense_elements: int = 2**20):
    trie = build_trie(IDS, dense_elements)
    below = items_below(trie, jnp.asarray(ALLOWED), jnp.asarray(EXCLUDED))
    result = jax.jit(lambda: beam_search(next_logits, trie.levels, below, beams))()
    codes = dict(zip(trie.node_of_item[-1].tolist(), map(tuple, IDS.codes.tolist()), strict=True))
    return [[codes[leaf] for leaf in row if leaf >= 0] for row in result.leaves.tolist()], result


@pytest.mark.parametrize("dense_elements", [0, 2**20])
@pytest.mark.parametrize("beams", [1, 2, 3, 5, 8, 40])
def test_beams_are_those_of_a_search_by_hand_and_no_other_id_appears(beams, dense_elements):
    ids, result = found(beams, dense_elements)
    for user in range(USERS):
        assert ids[user] == by_hand(user, beams)
        assert set(ids[user]) <= set(open_ids(user))
        want = [log_prob(user, row) for row in ids[user]]
        np.testing.assert_allclose(result.scores[user, : len(want)], want, rtol=1e-5)
        assert np.isneginf(result.scores[user, len(want) :]).all()
        assert result.items[user, : len(want)].tolist() == [open_ids(user)[row] for row in ids[user]]
        assert not result.items[user, len(want) :].any()


def test_with_a_beam_for_every_id_the_search_is_that_of_the_whole_catalogue():
    ids, _ = found(len(np.unique(IDS.codes, axis=0)))
    for user in range(USERS):
        assert ids[user] == sorted(open_ids(user), key=lambda row: -log_prob(user, row))
    everything = jnp.asarray(np.broadcast_to(IDS.codes, (USERS, 25, 3)))
    want = [[log_prob(user, tuple(row)) for row in IDS.codes] for user in range(USERS)]
    np.testing.assert_allclose(scores_of_ids(next_logits, everything), want, rtol=1e-5)


def test_a_user_who_may_be_shown_nothing_finds_nothing():
    trie = build_trie(IDS)
    excluded = np.stack([np.arange(25), np.full(25, -1), np.full(25, -1), np.full(25, -1)])
    below = items_below(trie, jnp.ones(25, bool), jnp.asarray(excluded))
    result = beam_search(next_logits, trie.levels, below, 4)
    assert (result.leaves[0] == -1).all()
    assert (result.leaves[1:] >= 0).all()


def test_scores_that_are_not_finite_are_told():
    trie = build_trie(IDS)
    below = items_below(trie, jnp.asarray(ALLOWED), jnp.asarray(EXCLUDED))
    result = beam_search(lambda prefixes: next_logits(prefixes).at[2].set(jnp.nan), trie.levels, below, 4)
    assert np.isnan(result.scores).all(axis=1).tolist() == [False, False, True, False]
