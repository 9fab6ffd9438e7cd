"""Compacter: Houlsby's adapters with matrices that are sums of Kronecker products."""

import jax
import jax.numpy as jnp

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.methods.bottleneck import sublayers
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params


@METHODS.register("compacter", "Karimi Mahabadi et al. 2021, arXiv 2106.04647")
def compacter(n: int = 4, rank: int = 1, reduction: int = 32, target: str = r"layer_\d+/(attention|ffn)") -> Peft:
    """Low-rank hypercomplex adapters after both sublayers of each block (equations 5 and 6).

        h ← h + GELU(h W_down + b) W_up + c,   W = Σ_i A_i ⊗ (s_i t_i),   i = 1 … n

    All adapters share the A_i [n, n]; s_i [in/n, R] and t_i [R, out/n] belong to one matrix. t is zero in W_up, so
    training starts at the pretrained function; A from N(0, 1/n), s from N(0, 1/R) and W_down's t from N(0, 1/in) give
    W_down the scale of a linear layer.

    Choose it when adapters must be small: it has a tenth of Houlsby's parameters.

    Args:
      n: Number of Kronecker products; must divide the width and the bottleneck.
      rank: R, the rank of the second factors.
      reduction: Width of the encoder divided by the width of the bottleneck.
      target: Regular expression for the sublayers to adapt.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {"layer_0": {"ffn": {"down": {"kernel": jnp.ones((256, 128))}}}}
      >>> peft.count(peft.create("compacter").init(jax.random.key(0), params))
      460

    References:
      Karimi Mahabadi et al., Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, 2021
      (https://arxiv.org/abs/2106.04647).
    """
    if n < 1 or rank < 1:
        raise ValueError(f"compacter: n is {n} and rank is {rank}, must be at least 1")

    def init(key: jax.Array, params: Params) -> Delta:
        delta: Delta = {"shared": {"a": n**-0.5 * jax.random.normal(jax.random.fold_in(key, 0), (n, n, n))}}
        for i, site, width, inner in sublayers("compacter", params, target, reduction):
            if width % n or inner % n:
                raise ValueError(
                    f"compacter: n = {n} does not divide {site}'s width {width} and its bottleneck {inner}"
                )
            keys = jax.random.split(jax.random.fold_in(key, i + 1), 3)
            small = rank**-0.5
            delta[site] = {
                "down_s": small * jax.random.normal(keys[0], (n, width // n, rank)),
                "down_t": width**-0.5 * jax.random.normal(keys[1], (n, rank, inner // n)),
                "down_bias": jnp.zeros(inner),
                "up_s": small * jax.random.normal(keys[2], (n, inner // n, rank)),
                "up_t": jnp.zeros((n, rank, width // n)),
                "up_bias": jnp.zeros(width),
            }
        return delta

    def tap(delta: Delta, site: str, call: Call, *args: jax.Array) -> jax.Array:
        h = call(*args)
        if site == "shared" or (w := delta.get(site)) is None:
            return h
        w = jax.tree.map(lambda x: x.astype(h.dtype), {**w, **delta["shared"]})
        hidden = _kronecker(h, w["a"], w["down_s"], w["down_t"]) + w["down_bias"]
        hidden = jax.nn.gelu(hidden, approximate=False)
        return h + _kronecker(hidden, w["a"], w["up_s"], w["up_t"]) + w["up_bias"]

    return Peft(init, tap=tap)


def _kronecker(x: jax.Array, a: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
    """Returns x [..., in] times Σ_i a_i ⊗ (s_i t_i) without forming the matrix."""
    n = len(a)
    blocks = x.reshape(*x.shape[:-1], n, -1)
    out = jnp.einsum("...pk,ipq,ikr,irm->...qm", blocks, a, s, t, optimize="optimal")
    return out.reshape(*x.shape[:-1], -1)
