"""Side network: a narrow network beside the encoder, which is never differentiated."""

from typing import Any

import jax
import jax.numpy as jnp

from llm4rec_jax.models.layers.side_network import gated, side_block
from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, stack


@METHODS.register("side", "Sung et al. 2022, arXiv 2206.06522; Fu et al. 2024, arXiv 2404.02059")
def side(width: int = 64, every: int = 2, temperature: float = 0.1) -> Peft:
    """A ladder side network with the gates and blocks of IISAN.

        s ← H_0 D_0
        s ← f_i(μ_i s + (1 − μ_i) H_i D_i),   μ_i = σ(γ_i / T),   f_i(z) = z + GELU(z A_i + a_i) B_i + b_i
        y = H_N + s U

    H_0 are the embeddings and H_i the states after block i, i = 1, 3, 5, …. U and γ_i start at zero, so training starts
    at the pretrained function.

    Choose it when a step must be cheap. Nothing in the encoder is trained or differentiated, so its states are computed
    once a run where memory allows.

    Args:
      width: Width of the side network.
      every: Number of blocks between two states that are read, beginning with the first block's.
      temperature: T, the temperature of the gates.

    Example:
      >>> from llm4rec_jax import peft
      >>> layers = {f"layer_{i}": {"attention": {"output": {"kernel": jnp.ones((8, 8))}}} for i in range(4)}
      >>> list(peft.create("side").init(jax.random.key(0), {"embeddings": {}, **layers}))
      ['.layers/0', '.layers/out', '.layers/1', '.layers/3']

    References:
      Sung et al., LST: Ladder Side-Tuning, 2022 (https://arxiv.org/abs/2206.06522).
      Fu et al., IISAN: Efficiently Adapting Multimodal Representation, 2024 (https://arxiv.org/abs/2404.02059).
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
            z = side_block(w, gated(w["gate"], z, states[i] @ w["reduce"], temperature))
        return [*states[:-1], states[-1] + z @ delta[".layers/out"]["up"]]

    return Peft(init, tap=tap)
