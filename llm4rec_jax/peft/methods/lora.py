"""LoRA: a low-rank update beside a linear layer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llm4rec_jax.models.layers.linear import product
from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, match, replace, sites


@METHODS.register("lora", "Hu et al. 2021, arXiv 2106.09685")
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
    init = low_rank("lora", rank, dropout, target)
    scale = alpha / (rank**0.5 if rslora else rank)

    def tap(delta: Delta, site: str, call: Call, *args: jax.Array) -> jax.Array:
        y = call(*args)
        if (ab := delta.get(site)) is None:
            return y
        x = drop(call, args[0].astype(y.dtype), dropout)
        return y + scale * product(product(x, ab["a"].astype(y.dtype)), ab["b"].astype(y.dtype))

    def merge(params: Params, delta: Delta) -> Params:
        linear = sites(params, "kernel")
        merged = {s: {"kernel": linear[s]["kernel"] + scale * (ab["a"] @ ab["b"])} for s, ab in delta.items()}
        return replace(params, merged)

    return Peft(init, tap=tap, merge=merge)


def low_rank(method: str, rank: int, dropout: float, target: str) -> Callable[[jax.Array, Params], Delta]:
    """The `init` of a method whose delta is {site: {"a": [in, R] ~ U(±1/√in), "b": [R, out] zeros}}.

    Raises:
      ValueError: options that are impossible; the message begins with the method's name.
    """
    if rank < 1:
        raise ValueError(f"{method}: rank is {rank}, must be at least 1")
    check_rate(method, dropout)

    def init(key: jax.Array, params: Params) -> Delta:
        linear = sites(params, "kernel")
        delta = {}
        for i, site in enumerate(match(target, linear)):
            size_in, size_out = linear[site]["kernel"].shape
            bound = size_in**-0.5
            a = jax.random.uniform(jax.random.fold_in(key, i), (size_in, rank), minval=-bound, maxval=bound)
            delta[site] = {"a": a, "b": jnp.zeros((rank, size_out))}
        return delta

    return init


def check_rate(method: str, dropout: float) -> None:
    """Raises ValueError unless the rate is in [0, 1)."""
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"{method}: dropout is {dropout}, must be in [0, 1)")


def drop(call: Call, x: jax.Array, rate: float) -> jax.Array:
    """Dropout that is on exactly when the caller gave a `dropout` rng."""
    if not rate or (key := call.rng()) is None:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
