"""Softmax losses in blocks against the plain ones over the whole matrix, forward and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.losses.blocks import Block, softmax_in_blocks
from llm4rec_jax.losses.ranking import full_softmax, in_batch_softmax, softmax
from llm4rec_jax.tasks.parts import split_rows

P, N, D = 7, 23, 5
RNG = np.random.default_rng(0)
USERS, ITEMS = (jnp.asarray(RNG.normal(size=(n, D)), jnp.float32) for n in (P, N))
TARGET, LOG_Q = jnp.asarray(RNG.integers(N, size=P)), jnp.log(jnp.asarray(RNG.random(N), jnp.float32))
SHARED = jnp.asarray(RNG.random(N) < 0.6)
# The last example has no candidate but its target.
OWN = jnp.asarray(RNG.random((P, N)) < 0.4).at[-1].set(False)


def in_blocks(users, items, blocks, where, log_q):
    rows = tuple(split_rows(array, blocks) for array in (items, log_q, jnp.broadcast_to(where, (P, N)).T))
    place = split_rows(jnp.arange(N), blocks, repeat=False)

    def block_of(block):
        place, items, log_q, where = block
        return Block(users @ items.T - log_q, place == TARGET[:, None], where.T & (place >= 0))

    return softmax_in_blocks(block_of, (place, *rows))


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("where", [SHARED, OWN], ids=["shared", "own"])
@pytest.mark.parametrize("blocks", [1, 4, N, N + 5])
def test_in_batch_softmax(blocks, where, scale):
    def plain(users, items):
        return in_batch_softmax(users @ items.T, TARGET, LOG_Q, where)

    def parts(users, items):
        return in_blocks(users, items, blocks, where, LOG_Q)

    users = scale * USERS
    np.testing.assert_allclose(parts(users, ITEMS), plain(users, ITEMS), rtol=1e-6, atol=1e-6)
    grads = (jax.grad(lambda u, i, f=f: f(u, i).sum(), argnums=(0, 1))(users, ITEMS) for f in (parts, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6 * scale), *grads)


def test_full_softmax_by_scipy():
    from scipy.special import log_softmax

    losses = in_blocks(USERS, ITEMS, 4, jnp.ones(N, bool), jnp.zeros(N))
    wanted = -log_softmax(np.asarray(USERS, np.float64) @ np.asarray(ITEMS, np.float64).T, axis=1)[np.arange(P), TARGET]
    np.testing.assert_allclose(losses, wanted, rtol=2e-6)
    np.testing.assert_allclose(losses, full_softmax(USERS @ ITEMS.T, TARGET), rtol=1e-6)


def test_sampled_softmax():
    scores = jnp.asarray(RNG.normal(size=(P, 9)), jnp.float32)

    def parts(scores):
        def block_of(block):
            place, scores = block
            return Block(scores.T, jnp.broadcast_to(place == 0, scores.T.shape), place >= 0)

        return softmax_in_blocks(block_of, (split_rows(jnp.arange(9), 2, repeat=False), split_rows(scores.T, 2)))

    def plain(scores):
        return softmax(scores[:, 0], scores[:, 1:])

    np.testing.assert_allclose(parts(scores), plain(scores), rtol=1e-6)
    grads = (jax.grad(lambda s, f=f: f(s).sum())(scores) for f in (parts, plain))
    np.testing.assert_allclose(*grads, rtol=1e-6, atol=1e-7)


def test_what_is_not_finite_comes_out():
    users = USERS.at[2].set(jnp.nan)
    losses = np.asarray(in_blocks(users, ITEMS, 4, SHARED, LOG_Q))
    assert np.isnan(losses[2])
    assert np.isfinite(np.delete(losses, 2)).all()
