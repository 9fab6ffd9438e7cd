"""LoRA: a trained matrix of low rank beside each frozen weight matrix."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from llm4rec_jax.models.layers.linear import product
from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, match, replace_kernels, sites


@METHODS.register("lora", "Hu et al. 2021, arXiv 2106.09685")
def lora(
    rank: int = 8,
    alpha: float = 8.0,
    dropout: float = 0.0,
    rslora: bool = False,
    target: str = r".*/(query|value)",
) -> Peft:
    """Low-rank adaptation.

        y = x W + s · (dropout(x) A) B,   s = alpha / rank

    A [in, R] is drawn from U(±1/√in) and B [R, out] is zero, so training starts at the pretrained function.

    LoRA is the method to begin with: it merges into W, so a trained model costs nothing extra, and most other results
    are compared with it.

    Args:
      rank: R, the rank of the update.
      alpha: Numerator of the scale s.
      dropout: Dropout rate on the input of the low-rank branch, used when the caller gives a dropout key.
      rslora: Use s = alpha / √rank, which keeps the update's size at high ranks (arXiv 2312.03732).
      target: Regular expression for the linear layers to adapt.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {"attention": {"query": {"kernel": jnp.ones((6, 4))}}}
      >>> method = peft.create("lora", {"lora": {"rank": 2}})
      >>> jax.tree.map(jnp.shape, method.init(jax.random.key(0), params))
      {'attention/query': {'a': (6, 2), 'b': (2, 4)}}

    References:
      Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021 (https://arxiv.org/abs/2106.09685).
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
        return replace_kernels(params, delta, lambda kernel, ab: kernel + scale * (ab["a"] @ ab["b"]))

    return Peft(init, tap=tap, merge=merge)


def low_rank(method: str, rank: int, dropout: float, target: str) -> Callable[[jax.Array, Params], Delta]:
    """Returns the `init` of a method whose delta is {site: {"a": [in, R] from U(±1/√in), "b": [R, out] zeros}}.

    Raises:
      ValueError: an option is out of range; the message begins with the method's name.
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
    """Raises ValueError unless the dropout rate is in [0, 1)."""
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"{method}: dropout is {dropout}, must be in [0, 1)")


def drop(call: Call, x: jax.Array, rate: float) -> jax.Array:
    """Returns x with dropout, which is on exactly when the caller gave a `dropout` rng."""
    if not rate or (key := call.rng()) is None:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
