"""OFT: the input of a linear layer is rotated, block by block."""

import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, match, replace_kernels, sites


def inverse(a: jax.Array) -> jax.Array:
    """Returns A⁻¹ of matrices [..., n, n] with zᵀAz ≥ zᵀz for all z, such as I + Q with a skew-symmetric Q.

    Gauss-Jordan sweeps of one column after another, without pivoting since every pivot is at least 1. Then one Newton
    step, X (2I − A X), which corrects rounding and alone carries the gradient, −X dA X.

    `jnp.linalg.inv` is no alternative: on a CPU it waits, from inside XLA's pool of threads, for that same pool, and a
    program with as many inverses at a time as there are threads never ends.

    Example:
      >>> inverse(jnp.array([[1.0, 1.0], [-1.0, 1.0]]))
      Array([[ 0.5, -0.5],
             [ 0.5,  0.5]], dtype=float32)
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
    """Orthogonal fine-tuning of the input, as in peft.

        y = (x R) W + bias,   R = diag(R_1, …),   R_i = (I − Q_i)(I + Q_i)⁻¹ = 2 (I + Q_i)⁻¹ − I

    The skew-symmetric Q_i are trained as their upper triangles, row by row, and start at zero, so training starts at
    the pretrained function.

    Choose it to change a model gently: rotations keep the angles between neurons. The method merges into W.

    Args:
      block: Size of a block; must divide the width of the input.
      neumann: Number of terms of the series (I + Q)(I − Q)⁻¹ = I + 2Q + 2Q² + … to use in place of the inverse, the
        last one halved, as peft does by default (with 5); 0 uses the inverse. The series gives the transposed rotation,
        and only approximately.
      target: Regular expression for the linear layers to adapt.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {"attention": {"query": {"kernel": jnp.ones((8, 4))}}}
      >>> method = peft.create("oft", {"oft": {"block": 4}})
      >>> jax.tree.map(jnp.shape, method.init(jax.random.key(0), params))
      {'attention/query': {'skew': (2, 6)}}

    References:
      Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning, 2023 (https://arxiv.org/abs/2306.07280).
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
        """Returns the rotations [blocks, block, block] of triangles [blocks, block (block − 1) / 2]."""
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
        if (w := delta.get(site)) is None:
            return call(*args)
        (x,) = args
        blocks = x.reshape(*x.shape[:-1], -1, block)
        return call(jnp.einsum("...nk,nkj->...nj", blocks, rotation(w["skew"]).astype(x.dtype)).reshape(x.shape))

    def merged(kernel: jax.Array, w: Params) -> jax.Array:
        return (rotation(w["skew"]) @ kernel.reshape(-1, block, kernel.shape[1])).reshape(kernel.shape)

    def merge(params: Params, delta: Delta) -> Params:
        return replace_kernels(params, delta, merged)

    return Peft(init, tap=tap, merge=merge)
