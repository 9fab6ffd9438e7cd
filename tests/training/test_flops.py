"""Counts of matrix products by hand, through everything that a program can be made of."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas
from jax.sharding import PartitionSpec

from llm4rec_jax import sharding
from llm4rec_jax.training.flops import count_flops

A, W = jnp.ones((4, 3)), jnp.ones((3, 3))
PRODUCT = 2 * 4 * 3 * 3


def count(function, *arguments) -> float:
    return count_flops(jax.jit(function).trace(*arguments).jaxpr)


def repeated(a, w):
    return jax.lax.scan(lambda a, _: (a @ w, None), a, length=5)[0].sum()


def rematerialised(a, w):
    # The inner product is needed again for the gradient of the sine.
    return jax.checkpoint(lambda a: jnp.sin(a @ w))(a).sum()


def guessing(a, w):
    return jax.lax.cond(a.sum() > 0, lambda: (a @ w @ w).sum(), lambda: (a @ w).sum())


@jax.custom_vjp
def custom(a, w):
    return a @ w


custom.defvjp(lambda a, w: (a @ w, w), lambda w, grad: (grad @ w.T @ w @ w, w))


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda a, w: a @ w, 1),
        (lambda a, w: jnp.einsum("bi,ij->jb", jnp.sin(a), w), 1),
        (lambda a, w: jax.vmap(lambda row: row @ w)(a), 1),
        (lambda a, w: jax.jit(lambda a: a @ w)(a) + a @ w, 2),
        (repeated, 5),
        (jax.grad(repeated), 5),
        (jax.grad(repeated, argnums=(0, 1)), 15),
        (jax.grad(rematerialised), 2),
        (guessing, 2),
        (custom, 1),
        (jax.grad(lambda a, w: custom(a, w).sum()), 3),
        (lambda a, w: jax.lax.map(lambda row: row @ w, a), 1),
        (lambda a, w: jax.lax.while_loop(lambda a: a.sum() < 9, lambda a: a + 1, a) @ w, 1),
    ],
)
def test_products_are_counted_by_hand(function, products):
    assert count(function, A, W) == products * PRODUCT


def test_a_loop_of_unknown_length_is_not_counted():
    loop = jax.grad(lambda w: w.sum())
    assert math.isnan(count(lambda a, w: jax.lax.while_loop(lambda a: a.sum() < 9, lambda a: a @ w, a), A, W))
    assert count(loop, W) == 0


def test_a_convolution_is_counted_by_hand():
    """Eight outputs of five channels, each a sum over three positions of two channels; in groups, of one."""
    signal = jnp.ones((1, 8, 2))
    for groups in (1, 2):
        kernel = jnp.ones((3, 2 // groups, 6))
        options = {"feature_group_count": groups, "dimension_numbers": ("NWC", "WIO", "NWC")}
        found = count(lambda s, k, o=options: jax.lax.conv_general_dilated(s, k, (1,), "SAME", **o), signal, kernel)
        assert found == 2 * 8 * 6 * 3 * 2 / groups


def test_what_one_device_computes_counts_on_all():
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    parts = (PartitionSpec("data"), PartitionSpec())
    found = count(jax.shard_map(lambda a, w: a @ w, mesh=mesh, in_specs=parts, out_specs=parts[0]), A, W)
    assert found == PRODUCT


def test_attention_by_cudnn_counts_as_its_products(monkeypatch):
    """Only traced: cuDNN runs on GPUs alone."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    q, kv = jnp.ones((2, 8, 4, 16), jnp.bfloat16), jnp.ones((2, 6, 4, 16), jnp.bfloat16)

    def attention(q, k, implementation):
        return jax.nn.dot_product_attention(q, k, k, implementation=implementation).sum()

    def gradient(q, k, implementation):
        return jax.value_and_grad(attention, argnums=(0, 1))(q, k, implementation)

    product = 2 * 2 * 4 * 8 * 6 * 16
    for implementation, forward, backward in (("xla", 2, 4), ("cudnn", 2, 5)):
        assert count(functools.partial(attention, implementation=implementation), q, kv) == forward * product
        found = count(functools.partial(gradient, implementation=implementation), q, kv)
        assert found == (forward + backward) * product


def test_products_of_a_pallas_kernel_are_unknown():
    def kernel(a, w, out):
        out[...] = a[...] @ w[...]

    product = pallas.pallas_call(kernel, jax.ShapeDtypeStruct((4, 3), jnp.float32), interpret=True)
    assert math.isnan(count(product, A, W))
