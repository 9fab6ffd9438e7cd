"""K-Adapter: small transformers beside the encoder, fused with its last states."""

from typing import Any

import jax
import jax.numpy as jnp

from llm4rec_jax.models.encoders.post_norm import Layer, PostNormConfig
from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, stack


@METHODS.register("k_adapter", "Wang et al. 2021, arXiv 2002.01808")
def k_adapter(width: int = 64, blocks: int = 2, heads: int = 4, layers: tuple[int, ...] = (0, -1)) -> Peft:
    """Knowledge adapters beside some blocks, fused with the encoder's output.

        a ← f + T(f D_k + d_k) U_k + u_k,   f = H_k + a   for each block k of `layers`, a = 0 at first
        y = [H_N; a] W + c

    H_k are the states after block k, and T is a small post-norm transformer that attends to real tokens only. W starts
    at [I; 0], so training starts at the pretrained function. By default the adapters stand beside the first and the
    last block, as in Adapter4Rec (https://arxiv.org/abs/2305.15036).

    Choose it when a step must be cheap and more parameters than those of `side` are wanted. Nothing in the encoder is
    trained or differentiated, so its states are computed once a run where memory allows.

    Args:
      width: Width of the small transformers; their feed-forward networks are four times as wide.
      blocks: Number of blocks of each small transformer.
      heads: Number of attention heads; must divide the width.
      layers: The blocks of the encoder, from 0; negative numbers count from the last.

    Example:
      >>> from llm4rec_jax import peft
      >>> peft.create("k_adapter", {"k_adapter": {"width": 6}})
      Traceback (most recent call last):
      ValueError: k_adapter: 2 blocks of width 6 and 4 heads: the heads must divide the width

    References:
      Wang et al., K-Adapter: Infusing Knowledge into Pre-Trained Models, 2021 (https://arxiv.org/abs/2002.01808).
    """
    if width < 1 or blocks < 1 or heads < 1 or width % heads:
        raise ValueError(
            f"k_adapter: {blocks} blocks of width {width} and {heads} heads: the heads must divide the width"
        )

    def small(dtype: str) -> Layer:
        config = PostNormConfig(
            hidden_size=width,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=width**-0.5,
            compute_dtype=dtype,
        )
        return Layer(config, parent=None)

    def init(key: jax.Array, params: Params) -> Delta:
        depth, size = stack(params, "k_adapter")
        if wrong := [k for k in layers if not -depth <= k < depth]:
            raise ValueError(f"k_adapter: layers has {wrong[0]}, but the encoder has the blocks 0 to {depth - 1}")
        fuse = jnp.concatenate([jnp.eye(size), jnp.zeros((size, size))])
        delta: Delta = {".layers/fuse": {"kernel": fuse, "bias": jnp.zeros(size)}}
        for i in range(len(layers)):
            keys = jax.random.split(jax.random.fold_in(key, i), blocks + 2)
            delta[f".layers/{i}"] = {
                "down": size**-0.5 * jax.random.normal(keys[0], (size, width)),
                "down_bias": jnp.zeros(width),
                "up": width**-0.5 * jax.random.normal(keys[1], (width, size)),
                "up_bias": jnp.zeros(size),
                **{
                    f"block_{j}": small("float32").init(k, jnp.zeros((1, 1, width)), jnp.ones((1, 1), bool))["params"]
                    for j, k in enumerate(keys[2:])
                },
            }
        return delta

    def tap(delta: Delta, site: str, call: Call, *args: Any) -> Any:
        states = call(*args)
        if site != ".layers":
            return states
        dtype, mask = states[0].dtype, args[1]
        block, a = small(dtype.name), jnp.zeros_like(states[0])
        for i, layer in enumerate(layers):
            # The blocks cast their arrays themselves.
            w: dict[str, Any] = {
                name: part.astype(dtype) if isinstance(part, jax.Array) else part
                for name, part in delta[f".layers/{i}"].items()
            }
            f = states[layer + 1 if layer >= 0 else layer] + a
            z: Any = f @ w["down"] + w["down_bias"]
            for j in range(blocks):
                z = block.apply({"params": w[f"block_{j}"]}, z, mask)
            a = f + z @ w["up"] + w["up_bias"]
        kernel, bias = (delta[".layers/fuse"][name].astype(dtype) for name in ("kernel", "bias"))
        return [*states[:-1], jnp.concatenate([states[-1], a], axis=-1) @ kernel + bias]

    return Peft(init, tap=tap, reads_ahead=True)
