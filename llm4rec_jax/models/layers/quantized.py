"""Weight matrices of few bits: int8 with a scale a column, and NF4 with scales that are quantised too (QLoRA).

A quantised matrix stands in a parameter tree where the float matrix was, at the path `…/kernel`. It has the shape of
the float matrix, and `jnp.asarray` dequantises it. `product` multiplies with it and keeps nothing of floats for the
backward pass.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.registry import unknown_name
from llm4rec_jax.trees import flatten, unflatten

Array: TypeAlias = np.ndarray | jax.Array

BLOCK = 64
"""Number of neighbouring weights of a column that share an NF4 scale."""
GROUP = 256
"""Number of NF4 scales that share a scale of their own."""
# Quantiles of N(0, 1), scaled to [-1, 1] (Dettmers et al. 2023, appendix E).
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


def _dynamic() -> np.ndarray:
    """Returns the 256 values of the dynamic 8-bit type (Dettmers 2016, arXiv 1511.04561), ascending.

    They are the centres of 2^i equal parts of the decade below 10^(i − 6), i = 0 … 6, with either sign, and 0 and 1.
    """
    bounds = [np.linspace(0.1, 1, 2**i + 1) * 10.0 ** (i - 6) for i in range(7)]
    positive = np.concatenate([(decade[:-1] + decade[1:]) / 2 for decade in bounds])
    return np.sort(np.concatenate([-positive, [0.0], positive, [1.0]])).astype(np.float32)


DYNAMIC = _dynamic()


class QuantizedMatrix:
    """A weight matrix [in, out] in few bits. Wherever JAX takes an array it stands for the dequantised matrix."""

    shape: Any

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    def dequantize(self, dtype: Any = jnp.float32) -> jax.Array:
        """Returns the matrix [in, out] in floats."""
        raise NotImplementedError

    def __jax_array__(self) -> jax.Array:
        return self.dequantize()


@functools.partial(jax.tree_util.register_dataclass, data_fields=["codes", "scales"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Int8Matrix(QuantizedMatrix):
    """A matrix of whole numbers times a scale for each output.

    Attributes:
      codes: [in, out] int8, from -127 to 127.
      scales: [out] float32.
    """

    codes: Array
    scales: Array

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Shape of the matrix, (in, out)."""
        return tuple(self.codes.shape)

    def dequantize(self, dtype: Any = jnp.float32) -> jax.Array:
        """Returns the matrix [in, out] in floats."""
        return (jnp.asarray(self.codes, jnp.float32) * self.scales).astype(dtype)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scales", "scales_absmax", "scales_mean"],
    meta_fields=["rows"],
)
@dataclasses.dataclass(frozen=True)
class Nf4Matrix(QuantizedMatrix):
    """A matrix of 4-bit NormalFloats with double quantisation, as bitsandbytes defines it.

    The scale of a block is the largest absolute weight in it. The mean of all scales is subtracted, and the differences
    are stored as numbers in `DYNAMIC`, times the largest absolute difference of their group. The bytes of `codes` by
    column and of `scales` by row are those of bitsandbytes.

    Attributes:
      codes: [in / 2, out] uint8, numbers in `NF4`: rows 2i and 2i + 1 in the high and the low half of row i.
      scales: [out, in / 64] uint8, numbers in `DYNAMIC`.
      scales_absmax: [out · in / 64 / 256] float32, over the scales row by row.
      scales_mean: [] float32.
      rows: in; `codes` and `scales` are padded to a multiple of 64 rows.
    """

    codes: Array
    scales: Array
    scales_absmax: Array
    scales_mean: Array
    rows: int

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Shape of the matrix, (in, out)."""
        return self.rows, self.codes.shape[1]

    def dequantize(self, dtype: Any = jnp.float32) -> jax.Array:
        """Returns the matrix [in, out] in floats."""
        factor = jnp.repeat(self.scales_absmax, GROUP)[: self.scales.size].reshape(self.scales.shape)
        scales = (_entries(DYNAMIC, self.scales) * factor + self.scales_mean).T
        numbers = jnp.stack([self.codes >> 4, self.codes & 15], axis=1)
        blocks = _entries(NF4, numbers).reshape(len(scales), BLOCK, -1) * scales[:, None]
        return blocks.reshape(-1, blocks.shape[-1])[: self.rows].astype(dtype)


def int8(kernel: Array) -> Int8Matrix:
    """Rounds a matrix [in, out] to 255 levels, evenly spaced up to the largest absolute weight of each output.

    A scale a column suffices at 8 bits, and costs nothing: the error of a weight is at most 1/254 of the largest one.
    """
    xp = _namespace(kernel)
    scales = xp.abs(kernel).max(0) / 127
    return Int8Matrix(xp.round(kernel / _nonzero(scales)).astype(np.int8), scales)


def nf4(kernel: Array) -> Nf4Matrix:
    """Rounds each weight of a matrix [in, out] to the nearest NormalFloat times the scale of its block."""
    xp = _namespace(kernel)
    rows, columns = kernel.shape
    blocks = xp.pad(kernel, ((0, -rows % BLOCK), (0, 0))).T.copy().reshape(columns, -1, BLOCK)
    absmax = xp.abs(blocks).max(-1)
    numbers = _nearest(NF4, blocks / _nonzero(absmax)[..., None])
    codes = (numbers[..., ::2] << 4 | numbers[..., 1::2]).reshape(columns, -1).T
    mean = absmax.mean()
    centred = (absmax - mean).reshape(-1)
    groups = xp.pad(centred, (0, -centred.size % GROUP)).reshape(-1, GROUP)
    scales_absmax = xp.abs(groups).max(-1)
    scales = _nearest(DYNAMIC, groups / _nonzero(scales_absmax)[:, None]).reshape(-1)[: centred.size]
    return Nf4Matrix(codes, scales.reshape(absmax.shape), scales_absmax, mean, rows)


FORMATS: dict[str, Callable[[Array], QuantizedMatrix]] = {"int8": int8, "nf4": nf4}


@jax.custom_vjp
def product(x: jax.Array, matrix: QuantizedMatrix) -> jax.Array:
    """x W for a frozen W: [..., in] and [in, out] to [..., out], computed in the type of x.

    W has no gradient. It is dequantised in the forward and in the backward pass, instead of being kept between them:
    the barriers keep XLA from dequantising before the other factor is there, and from finding that the forward pass has
    computed the same floats. On a CPU XLA removes barriers, and may hold the floats of all matrices.
    """
    x, matrix = jax.lax.optimization_barrier((x, matrix))
    return x @ matrix.dequantize(x.dtype)


def _forward(x: jax.Array, matrix: QuantizedMatrix) -> tuple[jax.Array, QuantizedMatrix]:
    return product(x, matrix), matrix


def _backward(matrix: QuantizedMatrix, grad: jax.Array) -> tuple[jax.Array, None]:
    grad, matrix = jax.lax.optimization_barrier((grad, matrix))
    return grad @ matrix.dequantize(grad.dtype).T, None


product.defvjp(_forward, _backward)


def quantize_params(params: Mapping[str, Any], form: str, sites: Collection[str], dtype: Any) -> dict[str, Any]:
    """Returns an encoder's parameters as `config.encoder.quantize` stores them.

    The linear weights that `sites` names are quantised and tables of embeddings are rounded to the compute type. Norms,
    biases and heads stay float32. Arrays of numpy are quantised on the host, with the
    same bits on every machine; `jax.eval_shape` gives the shapes for a tree of shapes.

    Args:
      params: Parameters of an encoder.
      form: Name in `FORMATS`.
      sites: Places of the linear layers below a block: `family.sites.linear.values()`.
      dtype: The compute type.

    Example:
      >>> params = {"layer_0": {"ffn": {"up": {"kernel": jax.ShapeDtypeStruct((128, 6), jnp.float32)}}}}
      >>> shapes = jax.eval_shape(lambda p: quantize_params(p, "nf4", ["ffn/up"], jnp.bfloat16), params)
      >>> kernel = shapes["layer_0"]["ffn"]["up"]["kernel"]
      >>> kernel.shape, kernel.codes.shape, kernel.scales.shape
      ((128, 6), (64, 6), (6, 2))
    """
    return unflatten({path: quantize_leaf(path, array, form, sites, dtype) for path, array in flatten(params).items()})


def quantize_leaf(path: str, array: Array, form: str, sites: Collection[str], dtype: Any) -> Any:
    """Returns what is stored in place of the array at a path; see `quantize_params`."""
    if form not in FORMATS:
        raise ValueError(unknown_name("format of weights in few bits", form, FORMATS))
    layer, _, place = path.partition("/")
    if re.fullmatch(r"layer_\d+", layer) and place.endswith("/kernel") and place.removesuffix("/kernel") in sites:
        return FORMATS[form](array)
    return array.astype(dtype) if path.endswith("/embedding") else array


def dequantize_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters with every quantised matrix in float32."""

    def floats(leaf: Any) -> Any:
        return jnp.asarray(leaf) if is_quantized(leaf) else leaf

    return jax.tree.map(floats, dict(params), is_leaf=is_quantized)


def is_quantized(leaf: Any) -> bool:
    """Returns whether a node of a parameter tree is a matrix of few bits."""
    return isinstance(leaf, QuantizedMatrix)


def _namespace(array: Array) -> Any:
    """Returns numpy or jax.numpy, whichever the array belongs to."""
    return np if isinstance(array, np.ndarray) else jnp


def _nonzero(scales: Array) -> Array:
    return _namespace(scales).where(scales == 0, np.float32(1), scales)


def _nearest(table: np.ndarray, values: Array) -> Array:
    """Returns the numbers of the nearest entries of an ascending table, uint8; of two that are as near, the lower."""
    # Faster than a binary search: comparisons are vectorised.
    numbers = _namespace(values).zeros_like(values, np.uint8)
    for bound in (table[1:] + table[:-1]) / 2:
        numbers += values > bound
    return numbers


def _entries(table: np.ndarray, numbers: Array) -> jax.Array:
    return jnp.asarray(table).at[numbers].get(mode="promise_in_bounds")
