"""Houlsby's bottleneck adapters."""

import jax
import jax.numpy as jnp

from llm4rec_jax.peft.core import METHODS, Call, Delta, Params, Peft, match, sites


@METHODS.register("houlsby")
def houlsby(reduction: int = 16, stddev: float = 1e-3, target: str = r"layer_\d+/(attention|ffn)") -> Peft:
    """h + GELU(h W_down + b) W_up + c after both sublayers, before residual and norm. Houlsby et al. 2019.

    arXiv 1902.00751. Near the identity at the start: both matrices ~ N(0, stddev²), as in the authors' code.

    Args:
      reduction: the bottleneck is the width divided by this.
      stddev: of both matrices at the start.
      target: the sublayers that get an adapter.
    """

    def init(key: jax.Array, params: Params) -> Delta:
        modules = sites(params)
        # A sublayer ends in the projection that gives its width.
        ends = {s.rpartition("/")[0]: m for s, m in modules.items() if s.endswith(("/output", "/down"))}
        delta = {}
        for i, site in enumerate(match(target, ends)):
            width = ends[site]["kernel"].shape[-1]
            if width < reduction:
                raise ValueError(f"houlsby: reduction {reduction} leaves nothing of {site}'s width {width}")
            down, up = jax.random.split(jax.random.fold_in(key, i))
            inner = width // reduction
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
        return h + jax.nn.gelu(h @ w["down"] + w["down_bias"], approximate=False) @ w["up"] + w["up_bias"]

    return Peft(init, tap=tap)
