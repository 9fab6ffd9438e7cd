"""A decoder with a method that reads texts part by part."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llm4rec_jax.models.decoders.cache import Cache, empty_cache, take_rows, widen
from llm4rec_jax.models.decoders.decoder import Decoder
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.peft.core import Peft, forward
from llm4rec_jax.peft.sites import Delta, Params

Weights = tuple[Params, Delta]
"""Parameters of a decoder, and the delta of its method."""


class CachedDecoder:
    """A decoder with a method, whose keys and values are kept between calls. Its functions are to be jitted.

    Args:
      encoder: A decoder, with its language head.
      method: Parameter-efficient method of the decoder, not `within` a part.

    Raises:
      ValueError: The encoder reads texts in both directions, or a token's states depend on later ones by the method.
    """

    def __init__(self, encoder: Encoder, method: Peft) -> None:
        check_causal(encoder, method)
        if method.adds_tokens:
            raise ValueError(
                f"{method.name} puts tokens in front of every text that is read, and here texts are read part by part: "
                "give another method, such as prefix"
            )
        # XLA's attention has keys of any number; nothing is differentiated.
        config = dataclasses.replace(encoder.config, attention="xla", remat=False)
        self.config, self._decoder, self._method = config, encoder.clone(config=config), method
        self._folded = method._replace(reparam=lambda params, delta: params)

    def fold(self, weights: Weights) -> Weights:
        """Returns the weights after the method's `reparam`, which `read` and `logits` take."""
        return self._method.reparam(*weights), weights[1]

    def check_length(self, weights: Weights, rows: int, slots: int) -> None:
        """Raises ValueError where decoder and method do not read texts of `slots` tokens. Nothing is computed."""
        ids = jax.ShapeDtypeStruct((rows, slots), jnp.int32)
        jax.eval_shape(lambda w, i: forward(self._decoder, self._folded, *self.fold(w), i, i), weights, ids)

    def start(self, rows: int, slots: int) -> Cache:
        """Returns an empty cache for texts [rows] of up to `slots` tokens."""
        return empty_cache(self.config, rows, slots)

    def begin(self, weights: Weights, ids: jax.Array) -> tuple[Weights, Cache]:
        """Returns folded weights, and a cache of one row that holds the tokens [L] with which all texts begin."""
        weights, cache = self.fold(weights), self.start(1, len(ids))
        if len(ids):
            _, cache = self.read(weights, cache, ids[None], jnp.ones((1, len(ids)), bool))
        return weights, cache

    def read_prompts(
        self, weights: Weights, cache: Cache, ids: jax.Array, mask: jax.Array, more: int
    ) -> tuple[jax.Array, Cache, jax.Array]:
        """Reads the ends of prompts after the beginning that they share.

        Args:
          weights: Result of `fold`.
          cache: Cache of `begin`, of C tokens.
          ids: [B, L].
          mask: [B, L] bool, the real tokens; one in each row.
          more: Number of slots for tokens after the prompts.

        Returns:
          Logits of the next tokens [B, V], a cache of C + L + more slots, and the mask of these [B, C + L + more].
        """
        common = cache["layer_0"]["attention"]["keys"].shape[1]
        slots = common + ids.shape[1] + more
        cache = take_rows(widen(cache, slots), jnp.zeros(len(ids), int))
        read = padded_mask(jnp.concatenate([jnp.ones((len(ids), common), bool), mask], axis=1), slots)
        states, cache = self.read(weights, cache, ids, read)
        return self.logits(weights, last_real(states, mask)), cache, read

    def read(self, weights: Weights, cache: Cache, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, Cache]:
        """Reads the next tokens of every text.

        Args:
          weights: Result of `fold`.
          cache: Tokens before.
          ids: [B, L].
          mask: [B, S] bool, the real tokens among all slots, these included; later ones are False. Or [B, L, S] bool,
            the slots that each token sees, itself included, in the order of its own text.

        Returns:
          Hidden states of the last layer [B, L, D], and the cache with these tokens.
        """
        return forward(self._decoder, self._folded, *weights, ids, mask, cache=cache)

    def logits(self, weights: Weights, states: jax.Array) -> jax.Array:
        """Returns scores of the next tokens [..., V] by hidden states [..., D]."""
        return forward(self._decoder, self._folded, *weights, states, apply="logits")


def check_causal(encoder: Encoder, method: Peft) -> None:
    """Raises ValueError unless the states of a token depend on no later one."""
    if not isinstance(encoder, Decoder) or not encoder.config.causal:
        raise ValueError(
            f"{encoder.config.model_type} reads texts in both directions, so it cannot go on with one: give a decoder "
            "such as smollm2"
        )
    if method.reads_ahead:
        raise ValueError(
            f"{method.name} lets tokens read later ones, so it cannot go on with a text: give another method"
        )


def last_real(states: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the states [B, D] of the last real token of each row.

    Args:
      states: [B, L, D].
      mask: [B, L] bool; padding may stand on either side.
    """
    # Row 0 1 1 0: the last 1 is at 2, the first of the reversed row 0 1 1 0 at 1.
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]


def padded_mask(mask: Any, slots: int) -> jax.Array:
    """Returns a mask [B, L] as bool over `slots` slots, of which those after L are not filled yet."""
    return jnp.pad(jnp.asarray(mask, bool), ((0, 0), (0, slots - mask.shape[1])))
