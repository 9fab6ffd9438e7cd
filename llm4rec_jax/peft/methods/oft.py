"""OFT: the input of a linear layer is rotated, block by block."""

import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, match, replace, sites


def inverse(a: jax.Array) -> jax.Array:
    """A⁻¹ of matrices [..., n, n] with zᵀAz ≥ zᵀz for all z, such as I + Q with a skew-symmetric Q.

    The sweep of one column after another, which here needs no pivots: each is at least 1. Then one step of Newton's,
    X (2I − A X), which mends rounding and alone carries the gradient, −X dA X.

    Not `jnp.linalg.inv`: on a CPU that waits, from inside XLA's pool of threads, for that same pool. As many of them at
    a time as it has threads, and the program never ends.
    """
    n = a.shape[-1]

    def sweep(k: jax.Array, a: jax.Array) -> jax.Array:
        here = jnp.arange(n) == k
        column, row = jnp.where(here, -1, a @ here), jnp.where(here, 1, here @ a)
        pivot = (a @ here @ here)[..., None, None]
        return jnp.where(here[:, None] | here, 0, a) - column[..., :, None] * row[..., None, :] / pivot

    eye = jnp.eye(n, dtype=a.dtype)
    with jax.default_matmul_precision("highest"):
        x = jax.lax.fori_loop(0, n, sweep, jax.lax.stop_gradient(a))
        return x @ (2 * eye - a @ x)


@METHODS.register("oft", "Qiu et al. 2023, arXiv 2306.07280")
def oft(block: int = 32, neumann: int = 0, target: str = r".*/(query|value)") -> Peft:
    """(x R) W + bias, R block-diagonal and orthogonal. Qiu et al. 2023 (arXiv 2306.07280); on the input, as in peft.

    Each block is a Cayley transform, R = (I − Q)(I + Q)⁻¹ = 2 (I + Q)⁻¹ − I, of a skew-symmetric Q that is kept as its
    upper triangle, row by row. Q = 0 at the start.

    Args:
      block: the size of a block; divides the width of the input.
      neumann: take the first so many terms of the series (I + Q)(I − Q)⁻¹ = I + 2Q + 2Q² + … instead of the inverse,
        the last one half, as peft does by default (with 5). That is the transposed rotation, and only nearly one.
      target: which linear layers.
    """
    if block < 2:
        raise ValueError(f"oft: block is {block}, must be at least 2")
    if neumann < 0 or neumann in (1, 2, 3):
        raise ValueError(f"oft: neumann is {neumann}, must be 0 or at least 4")
    rows, columns = np.triu_indices(block, 1)

    def init(key: jax.Array, params: Params) -> Delta:
        linear = sites(params, "kernel")
        delta = {}
        for site in match(target, linear):
            width = linear[site]["kernel"].shape[0]
            if width % block:
                raise ValueError(f"oft: block {block} does not divide {site}'s input of {width}")
            delta[site] = {"skew": jnp.zeros((width // block, len(rows)))}
        return delta

    def rotation(skew: jax.Array) -> jax.Array:
        """[blocks, block (block − 1) / 2] to [blocks, block, block]."""
        upper = jnp.zeros((len(skew), block, block), skew.dtype).at[:, rows, columns].set(skew)
        q, eye = upper - upper.mT, jnp.eye(block, dtype=skew.dtype)
        if not neumann:
            return 2 * inverse(eye + q) - eye
        power = q
        total = eye + 2 * q
        for term in range(2, neumann):
            power = power @ q
            total = total + (2 if term < neumann - 1 else 1) * power
        return total

    def tap(delta: Delta, site: str, call: Call, *args: jax.Array) -> jax.Array:
        if (own := delta.get(site)) is None:
            return call(*args)
        (x,) = args
        blocks = x.reshape(*x.shape[:-1], -1, block)
        return call(jnp.einsum("...nk,nkj->...nj", blocks, rotation(own["skew"]).astype(x.dtype)).reshape(x.shape))

    def merge(params: Params, delta: Delta) -> Params:
        linear = sites(params, "kernel")
        merged = {}
        for site, own in delta.items():
            kernel = linear[site]["kernel"]
            blocks = kernel.reshape(-1, block, kernel.shape[1])
            merged[site] = {"kernel": (rotation(own["skew"]) @ blocks).reshape(kernel.shape)}
        return replace(params, merged)

    return Peft(init, tap=tap, merge=merge)
