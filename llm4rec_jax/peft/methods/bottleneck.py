"""Bottleneck adapters: a small network after a sublayer, before its residual and norm."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.sites import Delta, Params, match, sites


def sublayers(method: str, params: Params, target: str, reduction: int) -> Iterator[tuple[int, str, int, int]]:
    """Yields the sublayers that match the target, as (number, site, width, width of the bottleneck)."""
    # A sublayer ends in the projection back to the width of the encoder.
    ends = {s.rpartition("/")[0]: m for s, m in sites(params).items() if s.endswith(("/output", "/down"))}
    if reduction < 1:
        raise ValueError(f"{method}: reduction is {reduction}, must be at least 1")
    for i, site in enumerate(match(target, ends)):
        width = ends[site]["kernel"].shape[-1]
        if width < reduction:
            raise ValueError(f"{method}: reduction {reduction} leaves nothing of {site}'s width {width}")
        yield i, site, width, width // reduction


def bottleneck(
    method: str, reduction: int, stddev: float, target: str, activation: Callable[[jax.Array], jax.Array]
) -> Peft:
    """Returns the method h + σ(h W_down + b) W_up + c after each target sublayer; both W from N(0, stddev²)."""

    def init(key: jax.Array, params: Params) -> Delta:
        delta = {}
        for i, site, width, inner in sublayers(method, params, target, reduction):
            down, up = jax.random.split(jax.random.fold_in(key, i))
            delta[site] = {
                "down": stddev * jax.random.normal(down, (width, inner)),
                "down_bias": jnp.zeros(inner),
                "up": stddev * jax.random.normal(up, (inner, width)),
                "up_bias": jnp.zeros(width),
            }
        return delta

    def tap(delta: Delta, site: str, call: Call, *args: jax.Array) -> jax.Array:
        h = call(*args)
        if (w := delta.get(site)) is None:
            return h
        w = jax.tree.map(lambda a: a.astype(h.dtype), w)
        return h + activation(h @ w["down"] + w["down_bias"]) @ w["up"] + w["up_bias"]

    return Peft(init, tap=tap)
