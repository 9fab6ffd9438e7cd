"""Products with weights are JAX's own, gradients included; only the order of the factors is another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.models.layers.linear import product

SHAPES = [((7, 5), (5, 3)), ((2, 7, 3), (3, 5)), ((2, 3, 7, 4), (4, 4)), ((5,), (5, 3))]


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_values_and_gradients_are_those_of_a_product(left, right):
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in (left, right))
    weights = rng.normal(size=(*left[:-1], right[1])).astype(np.float32)

    def found(function):
        return jax.value_and_grad(lambda x, k: (jnp.tanh(function(x, k)) * weights).sum(), argnums=(0, 1))(x, kernel)

    for ours, theirs in zip(*map(jax.tree.leaves, (found(product), found(jnp.matmul))), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size_in", "size_out"), [(3, 9), (9, 3)])
def test_the_factor_that_is_transposed_for_the_gradient_is_the_narrower_one(size_in, size_out):
    x, kernel = jnp.ones((4, 5, size_in)), jnp.ones((size_in, size_out))
    program = jax.make_jaxpr(jax.grad(lambda k: product(x, k).sum()))(kernel)
    (found,) = [
        e for e in program.eqns if e.primitive.name == "dot_general" and e.params["dimension_numbers"][0][0] == (0, 1)
    ]
    assert [factor.aval.shape for factor in found.invars] == [(4, 5, 3), (4, 5, 9)]


def test_half_precision_stays_what_it_is():
    x, kernel = jnp.ones((4, 3), jnp.bfloat16), jnp.ones((3, 5), jnp.bfloat16)
    grads = jax.grad(lambda x, k: product(x, k).astype(jnp.float32).sum(), argnums=(0, 1))(x, kernel)
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.bfloat16]
