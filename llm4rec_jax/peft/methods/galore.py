"""GaLore: full fine-tuning whose optimizer works on gradients of low rank."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.methods.full import full
from llm4rec_jax.peft.registry import METHODS


class GaloreState(NamedTuple):
    """The state of GaLore's optimizer.

    Attributes:
      step: Number of updates made.
      bases: For every array an orthonormal basis [R, smaller side], or a scalar where the array is not projected.
      inner: The state of the inner optimizer, in the low-rank space.
    """

    step: jax.Array
    bases: Any
    inner: Any


@METHODS.register("galore", "Zhao et al. 2024, arXiv 2403.03507")
def galore(rank: int = 128, every: int = 200, scale: float = 0.25, target: str = r".*") -> Peft:
    """Full fine-tuning with an optimizer that sees gradients of low rank (algorithm 2).

        W ← W + α P ρ(Pᵀ G),   P = the R leading singular vectors of G, ρ = the run's optimizer

    P is taken along the smaller side of G and computed anew every `every` updates. Arrays that are not matrices, or
    have a side of at most R, are trained as by `full`. Weight decay acts in the low-rank space too.

    Choose it to train all weights with less optimizer memory than full fine-tuning.

    Args:
      rank: R, the rank of the projected gradients.
      every: Number of updates between two decompositions.
      scale: α, the factor on the projected step.
      target: Regular expression for the modules to train.

    Example:
      >>> from llm4rec_jax import peft
      >>> peft.create("galore", {"galore": {"rank": 4}}).changes_optimizer
      True

    References:
      Zhao et al., GaLore: Memory-Efficient LLM Training, 2024 (https://arxiv.org/abs/2403.03507).
    """
    if rank < 1 or every < 1:
        raise ValueError(f"galore: rank is {rank} and every is {every}, must be at least 1")

    def optimizer(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
        return project(tx, rank, every, scale)

    return full(target)._replace(optimizer=optimizer)


def project(tx: optax.GradientTransformation, rank: int, every: int, scale: float) -> optax.GradientTransformation:
    """Returns `tx` in the low-rank space; see `galore`."""

    def projected(array: jax.Array) -> bool:
        return array.ndim == 2 and min(array.shape) > rank

    def down(array: jax.Array, basis: jax.Array) -> jax.Array:
        if not projected(array):
            return array
        rows, columns = array.shape
        return array @ basis.T if rows >= columns else basis @ array

    def up(low: jax.Array, basis: jax.Array, like: jax.Array) -> jax.Array:
        if not projected(like):
            return low
        rows, columns = like.shape
        return scale * (low @ basis if rows >= columns else basis.T @ low)

    def basis_of(gradient: jax.Array) -> jax.Array:
        if not projected(gradient):
            return jnp.zeros((), gradient.dtype)
        left, _, right = jnp.linalg.svd(gradient, full_matrices=False)
        return right[:rank] if gradient.shape[0] >= gradient.shape[1] else left.T[:rank]

    def init(params: Any) -> GaloreState:
        bases = jax.tree.map(
            lambda a: jnp.zeros((rank, min(a.shape)) if projected(a) else (), a.dtype),
            params,
        )
        return GaloreState(jnp.zeros((), jnp.int32), bases, tx.init(jax.tree.map(down, params, bases)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, GaloreState]:
        grads = updates
        bases = jax.lax.cond(state.step % every == 0, lambda: jax.tree.map(basis_of, grads), lambda: state.bases)
        # `up` multiplies by the scale, and weight decay must come out unscaled.
        small = jax.tree.map(lambda p, b: down(p, b) / (scale if projected(p) else 1.0), params, bases)
        updates, inner = tx.update(jax.tree.map(down, grads, bases), state.inner, small)
        return jax.tree.map(up, updates, bases, params), GaloreState(state.step + 1, bases, inner)

    return optax.GradientTransformation(init, update)
