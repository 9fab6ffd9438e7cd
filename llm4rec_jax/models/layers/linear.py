"""Products with weights, whose gradients are written in the order that compilers do best."""

from functools import cache
from typing import Any

import flax.linen as nn
import jax

from llm4rec_jax.models.layers import quantized


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x W: [..., in] and [in, out] to [..., out].

    The gradient xᵀ y' needs one of its factors transposed: it is the narrower one here. By JAX's own rule it is y',
    which XLA on a CPU computes anew for that, column by column: beside a GELU, or a low-rank update of a wide layer,
    that alone takes longer than all the rest of the layer.
    """
    return x @ kernel


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    over = tuple(range(x.ndim - 1))
    # The first factor is the one that is transposed.
    factors, narrow = ((x, grad), True) if kernel.shape[0] <= kernel.shape[1] else ((grad, x), False)
    found = jax.lax.dot_general(*factors, ((over, over), ((), ())))
    return grad @ kernel.T, found if narrow else found.T


product.defvjp(_forward, _backward)


def dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """`product`, as `flax.linen.Dense` takes it."""
    return product(x, kernel)


class Dense(nn.Module):
    """`flax.linen.Dense` whose matrix may be given in few bits. [..., in] -> [..., out].

    Attributes:
      features: Width of the output.
      dtype: Type that is computed in.
      kernel_init: Initialiser of the matrix.
      use_bias: Whether a bias is added.
    """

    features: int
    dtype: Any
    kernel_init: Any
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, given = x.astype(self.dtype), self.get_variable("params", "kernel")
        if quantized.is_quantized(given):
            y = quantized.product(x, given)
        else:
            kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
            y = product(x, kernel.astype(self.dtype))
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)


@cache
def normal(scale: float) -> Any:
    """Normal initialiser of standard deviation `scale`.

    It is jitted: whenever a module is called, Flax traces how its parameters would be drawn, for their shapes.
    """
    return jax.jit(nn.initializers.normal(scale), static_argnums=(1, 2))


def dense(features: int, name: str, dtype: Any, stddev: float, bias: bool = True) -> Dense:
    """A linear layer to `features`, drawn from N(0, stddev²), whose gradients `product` orders."""
    return Dense(features, dtype, normal(stddev), bias, name=name)
