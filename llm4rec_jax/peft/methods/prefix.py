"""Prefix tuning: trained keys and values in front of every attention."""

import jax
import jax.numpy as jnp

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, match, sites


@METHODS.register("prefix", "Li & Liang 2021, arXiv 2101.00190")
def prefix(
    length: int = 30,
    stddev: float = 0.02,
    reparametrise: bool = False,
    bottleneck: int = 512,
    shift: bool = True,
    target: str = r"layer_\d+/attention",
) -> Peft:
    """Attention over [P_k; K] and [P_v; V]. Li & Liang 2021 (arXiv 2101.00190); in every layer, P-tuning v2.

    Not the identity at the start: each prefix takes its share of the attention. With texts of a dozen tokens, give a
    length of a few.

    Args:
      length: n, key/value pairs a layer.
      stddev: of the prefixes at the start, 1 in peft; with `reparametrise`, of the rows that they are made from.
      reparametrise: train E [n, D] and one network, tanh(E W + b) V + c, whose output are all prefixes (section 4.3);
        `plain` gives what it comes to.
      bottleneck: the width of its hidden layer.
      shift: the encoder's text takes the positions after the prefix, as in peft; otherwise it keeps those from 0
        on.
      target: the attention modules.
    """
    if length < 1:
        raise ValueError(f"prefix: length is {length}, must be at least 1")
    if bottleneck < 1:
        raise ValueError(f"prefix: bottleneck is {bottleneck}, must be at least 1")

    def init(key: jax.Array, params: Params) -> Delta:
        modules = sites(params)
        delta = {}
        width = 0
        for i, site in enumerate(match(target, [s.removesuffix("/query") for s in modules if s.endswith("/query")])):
            width = modules[f"{site}/key"]["kernel"].shape[-1]
            for_key, for_value = jax.random.split(jax.random.fold_in(key, i))
            if reparametrise:
                delta[site] = {
                    **_linear(for_key, bottleneck, width, "key", "key_bias"),
                    **_linear(for_value, bottleneck, width, "value", "value_bias"),
                }
            else:
                delta[site] = {
                    "key": stddev * jax.random.normal(for_key, (length, width)),
                    "value": stddev * jax.random.normal(for_value, (length, width)),
                }
        if reparametrise:
            for_rows, for_hidden = jax.random.split(jax.random.fold_in(key, len(delta)))
            rows = stddev * jax.random.normal(for_rows, (length, width))
            delta["shared"] = {"rows": rows, **_linear(for_hidden, width, bottleneck, "hidden", "hidden_bias")}
        return delta

    def tap(delta: Delta, site: str, call: Call, *args: jax.Array) -> jax.Array:
        if shift and site == "embeddings/position":
            (at,) = args
            if (needed := len(at) + length) > (there := len(call.params["embedding"])):
                raise ValueError(
                    f"prefix: {len(at)} tokens after a prefix of {length} need {needed} positions, but the encoder has "
                    f"{there}: truncate the text when tokenising, shorten the prefix, or give shift=False"
                )
            return call(at + length)
        if not site.endswith(".attend") or (own := delta.get(site.removesuffix(".attend"))) is None:
            return call(*args)
        if "shared" in delta:
            own = _collapse(delta["shared"], own)
        q, k, v, mask = args
        batch, _, heads, width = k.shape

        def before(prefix: jax.Array, states: jax.Array) -> jax.Array:
            shape = (batch, length, heads, width)
            prefix = jnp.broadcast_to(prefix.astype(states.dtype).reshape(1, length, heads, width), shape)
            return jnp.concatenate([prefix, states], axis=1)

        mask = jnp.concatenate([jnp.ones((*mask.shape[:-1], length), bool), mask], axis=-1)
        return call(q, before(own["key"], k), before(own["value"], v), mask)

    return Peft(init, tap=tap)


def plain(delta: Delta) -> Delta:
    """The delta of `prefix` that a reparametrised one comes to: {site: {"key": [n, D], "value": [n, D]}}."""
    if "shared" not in delta:
        return delta
    return {site: _collapse(delta["shared"], own) for site, own in delta.items() if site != "shared"}


def _collapse(shared: Params, own: Params) -> dict[str, jax.Array]:
    hidden = jnp.tanh(shared["rows"] @ shared["hidden"] + shared["hidden_bias"])
    return {name: hidden @ own[name] + own[f"{name}_bias"] for name in ("key", "value")}


def _linear(key: jax.Array, size_in: int, size_out: int, kernel: str, bias: str) -> dict[str, jax.Array]:
    """A linear layer as torch draws it, U(±1/√in) both."""
    for_kernel, for_bias = jax.random.split(key)
    bound = size_in**-0.5
    return {
        kernel: jax.random.uniform(for_kernel, (size_in, size_out), minval=-bound, maxval=bound),
        bias: jax.random.uniform(for_bias, (size_out,), minval=-bound, maxval=bound),
    }
