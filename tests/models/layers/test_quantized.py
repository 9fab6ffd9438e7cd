"""int8 and NF4 against bitsandbytes' definitions, transcribed in numpy, and products with such matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from llm4rec_jax.models.layers.linear import dense
from llm4rec_jax.models.layers.quantized import (
    DYNAMIC,
    FORMATS,
    NF4,
    dequantize_params,
    int8,
    nf4,
    product,
    quantize_params,
)


def kernel(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return (0.02 * np.random.default_rng(seed).standard_t(5, size=(rows, columns))).astype(np.float32)


def nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.abs(values[..., None].astype(np.float64) - table).argmin(-1)


def test_table_of_normal_quantiles():
    """Section 3 of QLoRA: quantiles of N(0, 1) with an exact zero, eight above it and seven below."""
    offset = 0.9677083
    above, below = norm.ppf(np.linspace(offset, 0.5, 9)[:-1]), -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    wanted = np.sort([*above, 0, *below])
    np.testing.assert_allclose(NF4, wanted / wanted.max(), atol=2e-7)


def test_table_of_scales():
    """bitsandbytes' `create_dynamic_map()`: 7 exponents, the fraction takes what is left of 8 bits."""
    data = [0.0, 1.0]
    for i in range(7):
        bounds = np.linspace(0.1, 1, 2 ** (i + 7 - 7) + 1)
        for mean in (bounds[:-1] + bounds[1:]) / 2:
            data += [10 ** (-6 + i) * mean, -(10 ** (-6 + i)) * mean]
    np.testing.assert_allclose(DYNAMIC, np.sort(data), rtol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(64, 5), (128, 200), (192, 96)])
def test_nf4_is_bitsandbytes(rows, columns):
    weight = kernel(rows, columns).T
    blocks = weight.reshape(-1, 64)
    absmax = np.abs(blocks).max(1)
    codes = nearest(blocks / absmax[:, None], NF4).ravel()
    packed = (codes[::2] << 4 | codes[1::2]).astype(np.uint8)
    offset = absmax.mean()
    scale_codes, scale_absmax = np.zeros(len(absmax), np.uint8), []
    for start in range(0, len(absmax), 256):
        group = absmax[start : start + 256] - offset
        scale_absmax.append(np.abs(group).max())
        scale_codes[start : start + 256] = nearest(group / scale_absmax[-1], DYNAMIC)
    scales = DYNAMIC[scale_codes] * np.repeat(np.array(scale_absmax), 256)[: len(absmax)] + offset

    ours = nf4(weight.T)
    np.testing.assert_array_equal(ours.codes.T.ravel(), packed)
    np.testing.assert_array_equal(ours.scales.ravel(), scale_codes)
    np.testing.assert_array_equal(ours.scales_absmax, np.array(scale_absmax, np.float32))
    wanted = (NF4[codes].reshape(-1, 64) * scales[:, None]).reshape(weight.shape).T
    np.testing.assert_allclose(ours.dequantize(), wanted, rtol=1e-6, atol=0)


def test_int8_has_a_scale_a_column():
    weight = kernel(70, 6)
    weight[:, 2] = 0
    absmax = np.abs(weight).max(0)
    wanted = np.rint(weight / np.where(absmax, absmax, 1) * 127)
    ours = int8(weight)
    np.testing.assert_array_equal(ours.codes, wanted)
    error = np.abs(np.asarray(ours.dequantize()) - weight)
    assert (error <= absmax / 254 * 1.001).all()


@pytest.mark.parametrize("form", FORMATS)
def test_any_shape_and_zeros(form):
    weight = kernel(70, 6)
    weight[:64, 3] = 0
    ours = FORMATS[form](weight)
    dequantised = np.asarray(ours.dequantize())
    assert ours.shape == dequantised.shape == weight.shape
    assert ours.size == weight.size
    np.testing.assert_array_equal(dequantised[:64, 3], 0)
    assert np.abs(dequantised - weight).mean() < {"int8": 0.02, "nf4": 0.15}[form] * np.abs(weight).mean()
    zeros = FORMATS[form](np.zeros((64, 2), np.float32))
    np.testing.assert_array_equal(zeros.dequantize(), np.zeros((64, 2)))


@pytest.mark.parametrize("form", FORMATS)
def test_product_is_that_of_the_dequantised_matrix(form):
    """Output and gradient, mapped and not, and no float of the matrix is kept for the backward pass."""
    matrix = jax.tree.map(jnp.asarray, FORMATS[form](kernel(70, 6)))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 70)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4, 6)), jnp.float32)
    ours, back = jax.vjp(lambda x: product(x, matrix), x)
    theirs, wanted = jax.vjp(lambda x: x @ matrix.dequantize(), x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(back(weights)[0], wanted(weights)[0], rtol=1e-6, atol=1e-6)
    mapped = jax.jit(jax.vmap(jax.grad(lambda x, w: (product(x, matrix) * w).sum())))(x, weights)
    np.testing.assert_allclose(mapped, wanted(weights)[0], rtol=1e-6, atol=1e-6)
    kept = jax.tree.leaves(back)
    assert sum(a.nbytes for a in kept if a.dtype == jnp.float32) < matrix.size * 4


def test_bfloat16():
    matrix = int8(kernel(64, 8))
    x = jnp.ones((2, 64), jnp.bfloat16)
    y = product(x, matrix)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), x.astype(jnp.float32) @ matrix.dequantize(), atol=5e-3)


@pytest.mark.parametrize("form", FORMATS)
def test_layer_takes_either(form):
    layer = dense(6, "up", jnp.float32, 0.02)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 70)), jnp.float32)
    params = {"kernel": jnp.asarray(kernel(70, 6)), "bias": jnp.arange(6.0)}
    assert jax.tree.map(jnp.shape, layer.init(jax.random.key(0), x)["params"]) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(layer.apply({"params": params}, x), x @ params["kernel"] + params["bias"], atol=1e-6)
    matrix = FORMATS[form](kernel(70, 6))
    y = layer.apply({"params": {**params, "kernel": matrix}}, x)
    np.testing.assert_allclose(y, x @ matrix.dequantize() + params["bias"], atol=1e-6)


@pytest.mark.parametrize("form", FORMATS)
def test_trees_and_their_shapes(form):
    layer = {"ffn": {"up": {"kernel": kernel(70, 6), "bias": np.zeros(6, np.float32)}}}
    params = {
        "embeddings": {"word": {"embedding": kernel(9, 70)}},
        "layer_0": layer,
        "lm_head": {"kernel": kernel(70, 9)},
    }

    def quantize(tree):
        return quantize_params(tree, form, ["ffn/up"], jnp.bfloat16)

    ours = quantize(params)
    shapes = jax.eval_shape(quantize, params)
    assert jax.tree.structure(ours) == jax.tree.structure(shapes)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)
    assert ours["embeddings"]["word"]["embedding"].dtype == jnp.bfloat16
    assert ours["lm_head"]["kernel"] is params["lm_head"]["kernel"]
    floats = dequantize_params(ours)
    np.testing.assert_allclose(floats["layer_0"]["ffn"]["up"]["kernel"], layer["ffn"]["up"]["kernel"], atol=0.02)
    with pytest.raises(ValueError, match="unknown format of weights in few bits 'nf3'; did you mean 'nf4'"):
        quantize_params(params, "nf3", ["ffn/up"], jnp.float32)
