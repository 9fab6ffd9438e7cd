"""Floating-point operations of a program, counted from its jaxpr: those of the matrix products.

XLA's own count is of a compiled program. It leaves out what goes to a library, as all products of size do on a GPU, and
counts the body of a loop once. A jaxpr names every product with its shapes, whatever it is compiled to.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr


def count_flops(program: ClosedJaxpr) -> float:
    """Returns the FLOPs of a program's matrix products, convolutions and cuDNN attention, over all devices.

    A multiplication and an addition are two operations. Everything else is left out, as in the formulas of 6N FLOPs a
    token for training N parameters, and 4N where they are frozen. The body of a `scan` counts once a turn, the dearest
    branch of a `cond` counts, and what `remat` computes again counts again.

    Args:
      program: With global shapes, such as `jax.jit(function).trace(*arguments).jaxpr`.

    Returns:
      The count; NaN where a `while` of unknown length or a Pallas kernel holds products.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def loss(weights, inputs):
      ...     return (inputs @ weights).sum()
      >>> step = jax.jit(jax.value_and_grad(loss))
      >>> count_flops(step.trace(jnp.ones((3, 5)), jnp.ones((4, 3))).jaxpr)  # forward, and one product backward
      240.0
    """
    # A gradient is traced with products that nothing reads, of frozen weights for example; no compiler keeps them.
    used, _ = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    return _count(used)


def _count(program: Jaxpr | ClosedJaxpr) -> float:
    # A closed jaxpr has its equations in the jaxpr within.
    return float(sum(map(_count_equation, getattr(program, "jaxpr", program).eqns)))


def _count_equation(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name in _PRODUCTS:
        return _PRODUCTS[name](equation)
    if name == "while":
        return math.nan if _count(params["cond_jaxpr"]) + _count(params["body_jaxpr"]) else 0.0
    counts = [_count(inner) for inner in _inner_jaxprs(params)]
    if name == "pallas_call":
        # Its masks decide which blocks of the grid are computed.
        return math.nan if any(counts) else 0.0
    if name == "cond":
        return max(counts, key=lambda count: math.inf if math.isnan(count) else count)
    turns = params["length"] if name == "scan" else 1
    if name == "shard_map":
        # Shapes within are those of one device.
        turns = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return turns * sum(counts)


def _inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Jaxpr | ClosedJaxpr]:
    """Yields the programs that an equation calls: of jit, scan, remat, shard_map and custom derivatives."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Jaxpr | ClosedJaxpr):
                yield item


def _shapes(equation: JaxprEqn) -> list[tuple[int, ...]]:
    """Returns the shapes of an equation's operands, and last that of its first result."""
    variables: Any = [*equation.invars, equation.outvars[0]]
    return [getattr(variable.aval, "shape", ()) for variable in variables]


def _dot_general(equation: JaxprEqn) -> float:
    (left, _, result), (contracted, _) = _shapes(equation), equation.params["dimension_numbers"][0]
    return 2.0 * math.prod(result) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: JaxprEqn) -> float:
    (_, kernel, result), out_axis = _shapes(equation), equation.params["dimension_numbers"].rhs_spec[0]
    return 2.0 * math.prod(result) * math.prod(kernel) / kernel[out_axis]


def _attention(products: int) -> Callable[[JaxprEqn], float]:
    """Counts cuDNN's attention of queries [B, T, heads, D] and keys [B, S, heads, D]: some products of T by S by D."""

    def count(equation: JaxprEqn) -> float:
        queries, keys, *_ = _shapes(equation)
        return 2.0 * products * math.prod(queries) * keys[1]

    return count


_PRODUCTS: dict[str, Callable[[JaxprEqn], float]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "dot_product_attention_fwd_wrapper": _attention(2),
    # Scores are computed again, and four gradients: of scores, queries, keys and values.
    "dot_product_attention_bwd_wrapper": _attention(5),
}
