"""A side network: a narrow network beside the encoder reads its states, and the encoder is never differentiated."""

from typing import Any

import jax
import jax.numpy as jnp

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, stack


@METHODS.register("side", "Sung et al. 2022, arXiv 2206.06522; Fu et al. 2024, arXiv 2404.02059")
def side(width: int = 64, every: int = 2, temperature: float = 0.1) -> Peft:
    """H_N + s_K U: a ladder (Sung et al. 2022, arXiv 2206.06522) of IISAN's gates and blocks (Fu et al. 2024).

    With H_0 the embeddings and H_i the states after block i, i = 1, 3, 5, …:

        s ← H_0 D_0
        s ← f_i(μ_i s + (1 − μ_i) H_i D_i),  μ_i = σ(γ_i / T),  f_i(z) = z + GELU(z A_i + a_i) B_i + b_i

    U = 0 at the start, so that training starts at the pretrained function, and γ_i = 0. Nothing is trained in the
    encoder, so nothing is differentiated there, and where dropout allows its states are computed once a run.

    Args:
      width: of the side network.
      every: reads the states after every so many blocks, beginning with the first.
      temperature: T.
    """
    if width < 1 or every < 1 or temperature <= 0:
        raise ValueError(
            f"side: width is {width}, every is {every}, temperature is {temperature}; the first two must be at least "
            "1, the last above 0"
        )

    def init(key: jax.Array, params: Params) -> Delta:
        depth, size = stack(params, "side")
        read = range(1, depth + 1, every)
        keys = iter(jax.random.split(key, 3 * len(read) + 1))

        def linear(size_in: int, size_out: int) -> jax.Array:
            return size_in**-0.5 * jax.random.normal(next(keys), (size_in, size_out))

        delta: Delta = {".layers/0": {"reduce": linear(size, width)}, ".layers/out": {"up": jnp.zeros((width, size))}}
        for i in read:
            delta[f".layers/{i}"] = {
                "gate": jnp.zeros(()),
                "reduce": linear(size, width),
                "down": linear(width, width),
                "down_bias": jnp.zeros(width),
                "up": linear(width, width),
                "up_bias": jnp.zeros(width),
            }
        return delta

    def tap(delta: Delta, site: str, call: Call, *args: Any) -> Any:
        states = call(*args)
        if site != ".layers":
            return states
        dtype = states[0].dtype
        delta = jax.tree.map(lambda a: a.astype(dtype), delta)
        z = states[0] @ delta[".layers/0"]["reduce"]
        for i in sorted(int(s.removeprefix(".layers/")) for s in delta if s not in (".layers/0", ".layers/out")):
            w = delta[f".layers/{i}"]
            gate = jax.nn.sigmoid(w["gate"] / temperature)
            z = gate * z + (1 - gate) * (states[i] @ w["reduce"])
            z = z + jax.nn.gelu(z @ w["down"] + w["down_bias"], approximate=False) @ w["up"] + w["up_bias"]
        return [*states[:-1], states[-1] + z @ delta[".layers/out"]["up"]]

    return Peft(init, tap=tap)
