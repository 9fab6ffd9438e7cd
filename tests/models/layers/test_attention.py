"""Attention against torch's, and where there is nothing to attend to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm4rec_jax.models.layers.attention import attend

B, L, S, HEADS, D = 3, 5, 7, 2, 4


def drawn(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(B, length, HEADS, D)).astype(np.float32)


def allowed(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.random.default_rng(9).random(shape) < 0.6
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("shape", [(B, 1, 1, S), (B, 1, L, S), (B, HEADS, L, S)])
def test_states_and_gradients_are_those_of_torch(shape):
    q, k, v, weight, mask = drawn(0, L), drawn(1, S), drawn(2, S), drawn(3, L), allowed(shape)
    ours, pull = jax.vjp(lambda q, k, v: attend(q, k, v, jnp.asarray(mask)), q, k, v)
    theirs = [torch.tensor(a.transpose(0, 2, 1, 3), requires_grad=True) for a in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(
        theirs[0], theirs[1], theirs[2], attn_mask=torch.tensor(mask)
    )
    (out * torch.tensor(weight.transpose(0, 2, 1, 3))).sum().backward()
    np.testing.assert_allclose(ours, out.detach().numpy().transpose(0, 2, 1, 3), atol=2e-6)
    for grad, tensor in zip(pull(weight), theirs, strict=True):
        assert tensor.grad is not None
        np.testing.assert_allclose(grad, tensor.grad.numpy().transpose(0, 2, 1, 3), atol=5e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_with_nothing_to_attend_to_every_key_counts_alike(dtype):
    # Large scores: what is masked must not overflow.
    q, k, v = (jnp.asarray(drawn(i, S) * size, dtype) for i, size in ((0, 30), (1, 30), (2, 1)))
    out = attend(q, k, v, jnp.zeros((B, 1, 1, S), bool))
    assert out.dtype == dtype
    np.testing.assert_allclose(out, jnp.broadcast_to(v.mean(1, keepdims=True), out.shape), atol=2e-2)
    assert np.isfinite(np.asarray(jax.grad(lambda q: attend(q, k, v, jnp.zeros((B, 1, 1, S), bool)).sum())(q))).all()


def test_weights_that_are_dropped_are_dropped_before_they_meet_the_values():
    q, k, v = drawn(0, L), drawn(1, S), drawn(2, S)
    everything = jnp.ones((B, 1, 1, S), bool)
    only_first = attend(q, k, v, everything, lambda weights: weights.at[..., 1:].set(0.0))
    share = jax.nn.softmax(jnp.einsum("blhd,bshd->bhls", q, k) / D**0.5)[..., 0]
    np.testing.assert_allclose(only_first, jnp.einsum("bhl,bhd->blhd", share, v[:, 0]), atol=1e-6)


@pytest.mark.parametrize("shape", [(B, 1, 1, S), (B, 1, L, S)])
def test_heads_that_share_keys_scale_and_soft_cap(shape):
    rng, mask, groups = np.random.default_rng(4), allowed(shape), 3
    q = rng.normal(size=(B, L, groups * HEADS, D)).astype(np.float32)
    k, v = drawn(1, S), drawn(2, S)

    def equation(q, k, v):
        k, v = (jnp.repeat(a, groups, axis=2) for a in (k, v))
        scores = 1.5 * jnp.tanh(0.7 * jnp.einsum("blhd,bshd->bhls", q, k) / 1.5)
        return jnp.einsum("bhls,bshd->blhd", jax.nn.softmax(jnp.where(mask, scores, -1e30)), v)

    ours, pull = jax.vjp(lambda q, k, v: attend(q, k, v, jnp.asarray(mask), scale=0.7, softcap=1.5), q, k, v)
    theirs, their_pull = jax.vjp(equation, q, k, v)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    for grad, wanted in zip(pull(q), their_pull(q), strict=True):
        np.testing.assert_allclose(grad, wanted, atol=2e-5)
