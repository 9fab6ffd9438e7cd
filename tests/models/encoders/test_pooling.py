"""Poolings against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.models.encoders.pooling import POOLINGS

RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(4, 5, 6)).astype(np.float32)
MASK = np.arange(5) < np.array([5, 3, 1, 0])[:, None]


def pool(name: str, states=STATES, mask=MASK, params=None):
    module = POOLINGS.build(name)
    if params is None:
        params = module.init(jax.random.key(0), STATES, MASK)
    return module.apply(params, states, mask)


def per_text(function) -> np.ndarray:
    return np.stack([function(s[m]) if m.any() else np.zeros(6) for s, m in zip(STATES, MASK, strict=True)])


@pytest.mark.parametrize(
    ("name", "function"),
    [("mean", lambda s: s.mean(0)), ("max", lambda s: s.max(0)), ("cls", lambda s: s[0])],
)
def test_against_numpy(name, function):
    np.testing.assert_allclose(pool(name), per_text(function), atol=1e-6)


def test_literals():
    states = np.array([[[1.0, -4.0], [3.0, -2.0], [9.0, 9.0]]])
    mask = np.array([[1, 1, 0]])
    assert pool("mean", states, mask).tolist() == [[2.0, -3.0]]
    assert pool("max", states, mask).tolist() == [[3.0, -2.0]]
    assert pool("cls", states, mask).tolist() == [[1.0, -4.0]]


def test_attention_against_numpy():
    module = POOLINGS.build("attention", width=7)
    params = module.init(jax.random.key(0), STATES, MASK)["params"]
    params = jax.tree.map(lambda a: RNG.normal(size=a.shape).astype(np.float32), params)
    w, b, v = params["hidden"]["kernel"], params["hidden"]["bias"], params["query"]["kernel"][:, 0]
    assert (w.shape, b.shape, v.shape) == ((6, 7), (7,), (7,))

    def one(states):
        a = np.exp(np.tanh(states @ w + b) @ v)
        return a / a.sum() @ states

    np.testing.assert_allclose(module.apply({"params": params}, STATES, MASK), per_text(one), atol=1e-5)


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_padding_does_not_matter(name):
    padded = np.where(MASK[..., None], STATES, 50.0)
    np.testing.assert_array_equal(pool(name, padded), pool(name))
    np.testing.assert_allclose(pool(name, np.pad(STATES, ((0, 0), (0, 3), (0, 0))), np.pad(MASK, ((0, 0), (0, 3)))),
                               pool(name), atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_an_empty_text_is_zero_with_finite_gradients(name):
    module = POOLINGS.build(name)
    params = module.init(jax.random.key(0), STATES, MASK)
    assert not np.asarray(module.apply(params, STATES, MASK))[3].any()
    grads = jax.grad(lambda p, s: jnp.square(module.apply(p, s, MASK)).sum(), argnums=(0, 1))(params, STATES)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert np.asarray(grads[1])[MASK[..., None] & np.ones(6, bool)].any()
    assert not np.asarray(grads[1])[~MASK].any()


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_bfloat16_states_pool_in_float32(name):
    pooled = pool(name, jnp.asarray(STATES, jnp.bfloat16))
    assert pooled.dtype == jnp.float32
    rounded = np.asarray(jnp.asarray(STATES, jnp.bfloat16), np.float32)
    np.testing.assert_allclose(pooled, pool(name, rounded), atol=1e-6)


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_mask_may_be_integers(name):
    np.testing.assert_array_equal(pool(name, mask=MASK.astype(np.int32)), pool(name))


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_texts_side_by_side_in_a_row(name):
    """Three texts of one row, and a place that is empty."""
    lengths = MASK.sum(1)
    row = np.concatenate([s[:n] for s, n in zip(STATES, lengths, strict=True)] + [np.full((2, 6), 50.0, np.float32)])
    numbers = np.repeat([1, 2, 3, 0], [5, 3, 1, 2])
    masks = numbers[None] == np.arange(1, 5)[:, None]
    together = pool(name, row[None, None], masks[None])
    assert together.shape == (1, 4, 6)
    np.testing.assert_allclose(together[0], pool(name), atol=1e-6)
