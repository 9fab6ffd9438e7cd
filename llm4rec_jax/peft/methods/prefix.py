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
    """Prefix tuning in every block (P-tuning v2).

        attention(Q, [P_k; K], [P_v; V])

    Training does not start at the pretrained function, because each prefix takes its share of the attention.

    Use it for long texts and long runs. For texts of a dozen tokens choose a length of a few and `shift=False`.

    Args:
      length: n, the number of key and value pairs in each block.
      stddev: Standard deviation of the prefixes at the start (1 in peft), or with `reparametrise` of the rows E.
      reparametrise: Train E [n, D] and one network, tanh(E W + b) V + c, whose outputs are the prefixes (section 4.3).
        `plain` returns the prefixes.
      bottleneck: Width of that network's hidden layer.
      shift: Give the text the positions after the prefix, as peft does, instead of those from 0 on.
      target: Regular expression for the attention modules to adapt.

    Example:
      >>> from llm4rec_jax import peft
      >>> attention = {name: {"kernel": jnp.ones((8, 8))} for name in ("query", "key", "value")}
      >>> method = peft.create("prefix", {"prefix": {"length": 3}})
      >>> jax.tree.map(jnp.shape, method.init(jax.random.key(0), {"layer_0": {"attention": attention}}))
      {'layer_0/attention': {'key': (3, 8), 'value': (3, 8)}}

    References:
      Li & Liang, Prefix-Tuning: Optimizing Continuous Prompts, 2021 (https://arxiv.org/abs/2101.00190).
      Liu et al., P-Tuning v2, 2022 (https://arxiv.org/abs/2110.07602).
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
            tokens = at.shape[-1]
            if (needed := tokens + length) > (there := call.config.max_position_embeddings):
                raise ValueError(
                    f"prefix: {tokens} tokens after a prefix of {length} need {needed} positions, but the encoder has "
                    f"{there}: truncate the text when tokenising, shorten the prefix, or give shift=False"
                )
            return call(at + length)
        if shift and site == ".positions" and "position" not in call.params["embeddings"]:
            # Rotary positions. Those of a table are shifted where it is read.
            return call(*args) + length
        if not site.endswith(".attend") or (pair := delta.get(site.removesuffix(".attend"))) is None:
            return call(*args)
        if "shared" in delta:
            pair = _collapse(delta["shared"], pair)
        # The mask is [B, S] or [B, 1 or L, S], a bias on the scores [1 or B, heads, L, S]; both end in the keys.
        q, k, v, mask, *bias = args
        batch, _, heads, width = k.shape

        def before(prefix: jax.Array, states: jax.Array) -> jax.Array:
            shape = (batch, length, heads, width)
            prefix = jnp.broadcast_to(prefix.astype(states.dtype).reshape(1, length, heads, width), shape)
            return jnp.concatenate([prefix, states], axis=1)

        mask = jnp.concatenate([jnp.ones((*mask.shape[:-1], length), bool), mask], axis=-1)
        bias = [jnp.pad(b, ((0, 0), (0, 0), (0, 0), (length, 0))) for b in bias]
        return call(q, before(pair["key"], k), before(pair["value"], v), mask, *bias)

    return Peft(init, tap=tap)


def plain(delta: Delta) -> Delta:
    """Returns the plain delta of a reparametrised one: {site: {"key": [n, D], "value": [n, D]}}."""
    if "shared" not in delta:
        return delta
    return {site: _collapse(delta["shared"], network) for site, network in delta.items() if site != "shared"}


def _collapse(shared: Params, network: Params) -> dict[str, jax.Array]:
    hidden = jnp.tanh(shared["rows"] @ shared["hidden"] + shared["hidden_bias"])
    return {name: hidden @ network[name] + network[f"{name}_bias"] for name in ("key", "value")}


def _linear(key: jax.Array, size_in: int, size_out: int, kernel: str, bias: str) -> dict[str, jax.Array]:
    """Returns kernel and bias of a linear layer as torch draws them, from U(±1/√in)."""
    for_kernel, for_bias = jax.random.split(key)
    bound = size_in**-0.5
    return {
        kernel: jax.random.uniform(for_kernel, (size_in, size_out), minval=-bound, maxval=bound),
        bias: jax.random.uniform(for_bias, (size_out,), minval=-bound, maxval=bound),
    }
