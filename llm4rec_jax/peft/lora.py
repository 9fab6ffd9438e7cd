"""LoRA: a low-rank update beside a linear layer."""

import jax
import jax.numpy as jnp

from llm4rec_jax.peft.core import METHODS, Call, Delta, Params, Peft, match, replace, sites


@METHODS.register("lora")
def lora(
    rank: int = 8,
    alpha: float = 8.0,
    dropout: float = 0.0,
    rslora: bool = False,
    target: str = r".*/(query|value)",
) -> Peft:
    """y + s (dropout(x) A) B with s = alpha / rank. Hu et al. 2021 (arXiv 2106.09685).

    A [in, R] ~ U(±1/√in) and B [R, out] = 0, so that training starts at the pretrained function.

    Args:
      rank: R.
      alpha: the scale's numerator.
      dropout: on the low-rank branch's input only, when a dropout rng is given.
      rslora: s = alpha / √rank (Kalajdzievski 2023, arXiv 2312.03732).
      target: which linear layers.
    """
    if rank < 1:
        raise ValueError(f"lora: rank is {rank}, must be at least 1")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"lora: dropout is {dropout}, must be in [0, 1)")
    scale = alpha / (rank**0.5 if rslora else rank)

    def init(key: jax.Array, params: Params) -> Delta:
        linear = sites(params, "kernel")
        delta = {}
        for i, site in enumerate(match(target, linear)):
            size_in, size_out = linear[site]["kernel"].shape
            bound = size_in**-0.5
            a = jax.random.uniform(jax.random.fold_in(key, i), (size_in, rank), minval=-bound, maxval=bound)
            delta[site] = {"a": a, "b": jnp.zeros((rank, size_out))}
        return delta

    def tap(delta: Delta, site: str, call: Call, *args: jax.Array) -> jax.Array:
        y = call(*args)
        if (ab := delta.get(site)) is None:
            return y
        (x,) = args
        x = x.astype(y.dtype)
        if dropout and (key := call.rng()) is not None:
            x = jnp.where(jax.random.bernoulli(key, 1 - dropout, x.shape), x / (1 - dropout), 0)
        return y + scale * (x @ ab["a"].astype(y.dtype) @ ab["b"].astype(y.dtype))

    def merge(params: Params, delta: Delta) -> Params:
        linear = sites(params, "kernel")
        merged = {s: {"kernel": linear[s]["kernel"] + scale * (ab["a"] @ ab["b"])} for s, ab in delta.items()}
        return replace(params, merged)

    return Peft(init, tap=tap, merge=merge)
