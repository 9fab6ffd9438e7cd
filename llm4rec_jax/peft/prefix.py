"""Prefix tuning: trained keys and values in front of every attention."""

import jax
import jax.numpy as jnp

from llm4rec_jax.peft.core import METHODS, Call, Delta, Params, Peft, match, sites


@METHODS.register("prefix")
def prefix(length: int = 30, stddev: float = 0.02, target: str = r"layer_\d+/attention") -> Peft:
    """Attention over [P_k; K] and [P_v; V]. Li & Liang 2021 (arXiv 2101.00190); in every layer, P-tuning v2.

    Not the identity at the start: each prefix takes its share of the attention. With texts of a dozen tokens, give a
    length of a few.

    Args:
      length: n, key/value pairs a layer.
      stddev: of the prefixes at the start.
      target: the attention modules.
    """
    if length < 1:
        raise ValueError(f"prefix: length is {length}, must be at least 1")

    def init(key: jax.Array, params: Params) -> Delta:
        modules = sites(params)
        delta = {}
        for i, site in enumerate(match(target, [s.removesuffix("/query") for s in modules if s.endswith("/query")])):
            width = modules[f"{site}/key"]["kernel"].shape[-1]
            for_key, for_value = jax.random.split(jax.random.fold_in(key, i))
            delta[site] = {
                "key": stddev * jax.random.normal(for_key, (length, width)),
                "value": stddev * jax.random.normal(for_value, (length, width)),
            }
        return delta

    def tap(delta: Delta, site: str, call: Call, *args: jax.Array) -> jax.Array:
        if not site.endswith(".attend") or (p := delta.get(site.removesuffix(".attend"))) is None:
            return call(*args)
        q, k, v, mask = args
        batch, _, heads, width = k.shape

        def before(prefix: jax.Array, states: jax.Array) -> jax.Array:
            shape = (batch, length, heads, width)
            prefix = jnp.broadcast_to(prefix.astype(states.dtype).reshape(1, length, heads, width), shape)
            return jnp.concatenate([prefix, states], axis=1)

        mask = jnp.concatenate([jnp.ones((*mask.shape[:-1], length), bool), mask], axis=-1)
        return call(q, before(p["key"], k), before(p["value"], v), mask)

    return Peft(init, tap=tap)
