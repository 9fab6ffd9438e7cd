"""The inverse behind OFT's rotation: numpy's at any size of Q, and nothing that could wait for XLA's own threads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.peft import create
from llm4rec_jax.peft.methods.oft import inverse

N = 32
WEIGHTS = np.random.default_rng(1).normal(size=(5, N, N)).astype(np.float32)


def shifted(scale: float) -> np.ndarray:
    """I + Q in float64."""
    upper = np.triu(np.random.default_rng(0).normal(size=(5, N, N)) * scale, 1)
    return np.eye(N) + upper - upper.swapaxes(1, 2)


@pytest.mark.parametrize("scale", [0.0, 0.01, 0.3, 1.0, 10.0])
def test_inverse_and_its_gradient(scale):
    a = shifted(scale)
    want = np.linalg.inv(a)
    grad = -want.swapaxes(1, 2) @ WEIGHTS @ want.swapaxes(1, 2)
    x, grads = jnp.asarray(a, jnp.float32), jax.jit(jax.grad(lambda a: (inverse(a) * WEIGHTS).sum()))
    np.testing.assert_allclose(inverse(x), want, rtol=0, atol=1e-6)
    np.testing.assert_allclose(grads(x), grad, rtol=0, atol=3e-5 * max(1.0, np.abs(grad).max()))


def test_rotations_are_orthogonal():
    params = {"layer_0": {"query": {"kernel": jnp.eye(N)}}}
    method = create("oft")
    delta = {"layer_0/query": {"skew": jax.random.normal(jax.random.key(0), (1, N * (N - 1) // 2))}}
    rotation = method.merge(params, delta)["layer_0"]["query"]["kernel"]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(N), rtol=0, atol=2e-6)
    assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5)


def test_nothing_waits_for_the_pool():
    """Two of its solves at a time, on a CPU of two threads, never return."""

    def text(f) -> str:
        return jax.jit(jax.grad(lambda a: f(a).sum())).lower(jnp.asarray(shifted(1.0), jnp.float32)).compile().as_text()

    assert "lapack_strsm_ffi" in text(jnp.linalg.inv)
    assert "custom_call_target" not in text(inverse)
