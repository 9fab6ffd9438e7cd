"""Prompt tuning: trained embeddings in front of every text."""

from typing import Any

import jax
import jax.numpy as jnp

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, sites


@METHODS.register("prompt", "Lester et al. 2021, arXiv 2104.08691")
def prompt(length: int = 20) -> Peft:
    """Prompt tuning: trained embeddings in front of every text, whose states are dropped afterwards.

        y = M([P; E(text)])

    P [n, D] starts as the embeddings of n tokens drawn from the vocabulary. It takes the first n positions and the text
    the following ones, as in peft. Training does not start at the pretrained function, because every token attends to
    the prompt.

    Use it with large decoders and long runs. It lengthens every text, so it saves parameters and not time.

    Args:
      length: n, the number of trained embeddings.

    Example:
      >>> from llm4rec_jax import peft
      >>> tables = {name: {"embedding": jnp.ones((40, 8))} for name in ("word", "position", "token_type")}
      >>> jax.tree.map(jnp.shape, peft.create("prompt").init(jax.random.key(0), {"embeddings": tables}))
      {'embeddings/word': {'prompt': (20, 8)}}

    References:
      Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning, 2021 (https://arxiv.org/abs/2104.08691).
    """
    if length < 1:
        raise ValueError(f"prompt: length is {length}, must be at least 1")
    word, position, token_type = (f"embeddings/{name}" for name in ("word", "position", "token_type"))

    def init(key: jax.Array, params: Params) -> Delta:
        tables = sites(params, "embedding")
        if word not in tables:
            raise ValueError(f"prompt: only an encoder of tokens can be given one; there is no {word} here")
        table = tables[word]["embedding"]
        # Encoders with rotary positions have no table of them.
        if position in tables and length >= (positions := len(tables[position]["embedding"])):
            raise ValueError(f"prompt: length {length} leaves no room for text: the encoder has {positions} positions")
        return {word: {"prompt": table[jax.random.choice(key, len(table), (length,))].astype(jnp.float32)}}

    def tap(delta: Delta, site: str, call: Call, *args: Any) -> Any:
        if site == word:
            states = call(*args)
            first = jnp.broadcast_to(
                delta[word]["prompt"].astype(states.dtype), (len(states), length, states.shape[-1])
            )
            return jnp.concatenate([first, states], axis=1)
        if site == position:
            (at,) = args
            tokens = at.shape[-1]
            if (needed := tokens + length) > (there := call.config.max_position_embeddings):
                raise ValueError(
                    f"prompt: {tokens} tokens, padding included, and a prompt of {length} make {needed}, but the "
                    f"encoder has {there} positions: cut texts shorter when tokenising, or shorten the prompt"
                )
            # A text at 0 1 2 and a prompt of two: 0 1 | 2 3 4. Some families begin at another number than 0.
            return call(jnp.concatenate([at[..., :1] + jnp.arange(length), at + length], axis=-1))
        if site == token_type:
            # One type for all tokens, or one for each.
            return call(args[0] if args[0].ndim == 0 else jnp.pad(args[0], ((0, 0), (length, 0))))
        if site == ".layers":
            states, mask = args
            mask = jnp.pad(mask, ((0, 0), (length, 0)), constant_values=True)
            return [state[:, length:] for state in call(states, mask)]
        return call(*args)

    return Peft(init, tap=tap, adds_tokens=True)
