"""VeRA: LoRA with random matrices that all sites share, of which only scales are trained."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.methods.lora import check_rate, drop
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, match, replace_kernels, sites


@METHODS.register("vera", "Kopiczko et al. 2024, arXiv 2310.11454")
def vera(
    rank: int = 256,
    d_initial: float = 0.1,
    dropout: float = 0.0,
    seed: int = 0,
    target: str = r".*/(query|value)",
    projections: tuple[np.ndarray, np.ndarray] | None = None,
) -> Peft:
    """Vector-based random matrix adaptation.

        y = x W + λ_b ∘ ((λ_d ∘ (dropout(x) A)) B)

    A [in, R] from U(±√(6/in)) and B [R, out] from U(±√(6/R)) are frozen, and are the leading rows and columns of one
    pair for all sites. λ_d [R] starts at d_initial and λ_b [out] at zero, so training starts at the pretrained
    function.

    Choose it to keep many adapters: it trains a tenth of LoRA's parameters, but a high rank costs time.

    Args:
      rank: R, the rank of the update.
      d_initial: λ_d at the start.
      dropout, target: See `lora`.
      seed: Seed of A and B, which are not part of the delta.
      projections: (A, B) of the largest site to use instead, as an adapter from elsewhere brings them.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {"attention": {"query": {"kernel": jnp.ones((8, 4))}}}
      >>> jax.tree.map(jnp.shape, peft.create("vera").init(jax.random.key(0), params))
      {'attention/query': {'b': (4,), 'd': (256,)}}

    References:
      Kopiczko et al., VeRA: Vector-based Random Matrix Adaptation, 2024 (https://arxiv.org/abs/2310.11454).
    """
    if rank < 1:
        raise ValueError(f"vera: rank is {rank}, must be at least 1")
    check_rate("vera", dropout)

    def shared(size_in: int, size_out: int) -> tuple[jax.Array, jax.Array]:
        if projections is None:
            a, b = draw_projections(rank, seed, size_in, size_out)
        else:
            a, b = projections[0][:size_in], projections[1][:, :size_out]
            if a.shape != (size_in, rank) or b.shape != (rank, size_out):
                raise ValueError(
                    f"vera: projections of {projections[0].shape} and {projections[1].shape} do not reach a site of "
                    f"{size_in} by {size_out} at rank {rank}"
                )
        return jnp.asarray(a), jnp.asarray(b)

    def init(key: jax.Array, params: Params) -> Delta:
        linear = sites(params, "kernel")
        return {
            site: {"d": jnp.full(rank, d_initial), "b": jnp.zeros(linear[site]["kernel"].shape[1])}
            for site in match(target, linear)
        }

    def tap(delta: Delta, site: str, call: Call, *args: jax.Array) -> jax.Array:
        y = call(*args)
        if (w := delta.get(site)) is None:
            return y
        x = drop(call, args[0].astype(y.dtype), dropout)
        a, b = (m.astype(y.dtype) for m in shared(x.shape[-1], y.shape[-1]))
        return y + w["b"].astype(y.dtype) * ((x @ a * w["d"].astype(y.dtype)) @ b)

    def merged(kernel: jax.Array, w: Params) -> jax.Array:
        a, b = shared(*kernel.shape)
        return kernel + (a * w["d"]) @ b * w["b"]

    def merge(params: Params, delta: Delta) -> Params:
        return replace_kernels(params, delta, merged)

    return Peft(init, tap=tap, merge=merge)


@cache
def draw_projections(rank: int, seed: int, size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns A [in, R] and B [R, out].

    Those of a smaller site are part of those of a larger one, except for A's scale.
    """
    for_a, for_b = np.random.SeedSequence(seed).spawn(2)
    a = np.random.default_rng(for_a).uniform(-1, 1, (size_in, rank)) * (6 / size_in) ** 0.5
    b = np.random.default_rng(for_b).uniform(-1, 1, (size_out, rank)).T * (6 / rank) ** 0.5
    return a.astype(np.float32), b.astype(np.float32)
