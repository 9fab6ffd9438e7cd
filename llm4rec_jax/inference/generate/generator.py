"""Generation of texts with a decoder and a method."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm4rec_jax.inference.generate.beams import Beams, beam_search
from llm4rec_jax.inference.generate.cached import CachedDecoder, Weights, last_real, padded_mask
from llm4rec_jax.inference.generate.choosing import Sampling
from llm4rec_jax.models.decoders.cache import Cache
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.registry import create


class Generated(NamedTuple):
    """Texts that were generated. Beam search has an axis of beams, the best first, after that of the prompts.

    Attributes:
      ids: [B, T] or [B, K, T] tokens after the prompt, padding after a stop token.
      lengths: [B] or [B, K] number of tokens, the stop token included.
      scores: [B] log-likelihoods by the model; [B, K] those divided by a power of the length.
    """

    ids: jax.Array
    lengths: jax.Array
    scores: jax.Array


class Generator:
    """Generates texts token by token with a decoder and a method, in fixed shapes.

    Every combination of shapes and options is compiled once. Prompts may be padded on either side.

    Args:
      encoder: A decoder, loaded with `language_head=True`.
      method: Parameter-efficient method of the decoder; None for the decoder alone.
      stop_tokens: Tokens that end a text; None takes the configuration's `eos_token_id`.
      pad_token: Token after the end; None takes the configuration's `pad_token_id`, or the first stop token.

    Raises:
      ValueError: The encoder or the method reads later tokens.

    Example:
      >>> from llm4rec_jax.models.decoders.config import DecoderConfig
      >>> from llm4rec_jax.models.decoders.decoder import Decoder
      >>> config = DecoderConfig(model_type="llama", vocab_size=7, hidden_size=8, num_hidden_layers=1,
      ...                        num_attention_heads=2, head_dim=4, num_key_value_heads=1, intermediate_size=8)
      >>> ids = jnp.array([[3, 1, 4]])
      >>> params = Decoder(config).init(jax.random.key(0), ids, ids > 0)["params"]
      >>> Generator(Decoder(config)).greedy((params, {}), ids, ids > 0, max_new_tokens=5).ids.shape
      (1, 5)
    """

    def __init__(
        self,
        encoder: Encoder,
        method: Peft | None = None,
        stop_tokens: tuple[int, ...] | None = None,
        pad_token: int | None = None,
    ) -> None:
        self._model = CachedDecoder(encoder, create("frozen") if method is None else method)
        config = encoder.config
        given = config.eos_token_id if stop_tokens is None else stop_tokens
        self._stops = () if given is None else (given,) if isinstance(given, int) else tuple(given)
        pads = (pad_token, config.pad_token_id, *self._stops, 0)
        self._pad = next(token for token in pads if token is not None)
        self._written = jax.jit(self._write, static_argnames=("steps", "sampling"))
        self._searched = jax.jit(self._search, static_argnames="beams")

    def greedy(self, weights: Weights, ids: Any, mask: Any, max_new_tokens: int) -> Generated:
        """Generates the likeliest token at each step.

        Args:
          weights: Parameters and delta.
          ids: [B, L] tokens of the prompts.
          mask: [B, L], which of them are real.
          max_new_tokens: Number of tokens T after which a text without a stop token ends.
        """
        self._check(weights, ids, mask, max_new_tokens)
        return self._written(weights, ids, mask, jax.random.key(0), steps=max_new_tokens, sampling=None)

    def sample(
        self, weights: Weights, ids: Any, mask: Any, max_new_tokens: int, key: jax.Array, sampling: Sampling
    ) -> Generated:
        """Draws each token; see `greedy` for the arguments.

        Args:
          key: Key of the random numbers.
          sampling: Temperature, top-k and top-p.
        """
        sampling.check()
        self._check(weights, ids, mask, max_new_tokens)
        return self._written(weights, ids, mask, key, steps=max_new_tokens, sampling=sampling)

    def beam_search(self, weights: Weights, ids: Any, mask: Any, max_new_tokens: int, beams: Beams) -> Generated:
        """Generates the K texts of the highest scores that a beam search finds; see `greedy` for the arguments."""
        beams.check(self._model.config.vocab_size, len(self._stops))
        self._check(weights, ids, mask, max_new_tokens)
        return Generated(*self._searched(weights, ids, padded_mask(mask, mask.shape[1] + max_new_tokens), beams=beams))

    def _check(self, weights: Weights, ids: Any, mask: Any, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"max_new_tokens is {steps}, must be at least 1")
        if ids.shape != mask.shape or ids.ndim != 2 or not jnp.asarray(mask, bool).any(axis=1).all():
            raise ValueError(
                f"ids {ids.shape} and mask {mask.shape} must both be [B, L], with a real token in each row"
            )
        self._model.check_length(weights, ids.shape[0], ids.shape[1] + steps)

    def _write(
        self, weights: Weights, ids: jax.Array, mask: jax.Array, key: jax.Array, steps: int, sampling: Sampling | None
    ) -> Generated:
        model, (rows, length) = self._model, ids.shape
        weights, slots = model.fold(weights), padded_mask(mask, length + steps)
        states, cache = model.read(weights, model.start(rows, length + steps), ids, slots)
        logits = model.logits(weights, last_real(states, slots[:, :length]))
        empty = Generated(
            jnp.full((rows, steps), self._pad, jnp.int32), jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.float32)
        )

        def goes_on(state: tuple[Any, ...]) -> jax.Array:
            step, done = state[:2]
            return (step < steps) & ~done.all()

        def write(state: tuple[jax.Array, jax.Array, jax.Array, Cache, jax.Array, Generated]) -> tuple[Any, ...]:
            step, done, slots, cache, logits, made = state
            if sampling is None:
                token = jnp.argmax(logits, axis=-1)
            else:
                token = sampling.choose(logits, jax.random.fold_in(key, step))
            token = jnp.where(done, self._pad, token).astype(jnp.int32)
            likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
            made = Generated(
                made.ids.at[:, step].set(token),
                made.lengths + ~done,
                made.scores + jnp.where(done, 0.0, likelihood),
            )
            done = done | is_one_of(token, self._stops)
            slots = slots.at[:, length + step].set(True)
            states, cache = model.read(weights, cache, token[:, None], slots)
            return step + 1, done, slots, cache, model.logits(weights, states[:, 0]), made

        begin = jnp.int32(0), jnp.zeros(rows, bool), slots, cache, logits, empty
        return jax.lax.while_loop(goes_on, write, begin)[-1]

    def _search(self, weights: Weights, ids: jax.Array, slots: jax.Array, beams: Beams) -> tuple[jax.Array, ...]:
        model, length = self._model, ids.shape[1]
        weights = model.fold(weights)
        states, cache = model.read(weights, model.start(*slots.shape), ids, slots)
        logits = model.logits(weights, last_real(states, slots[:, :length]))

        def read(cache: Cache, tokens: jax.Array, slots: jax.Array) -> tuple[jax.Array, Cache]:
            states, cache = model.read(weights, cache, tokens[:, None], slots)
            return model.logits(weights, states[:, 0]), cache

        ends = partial(is_one_of, tokens=self._stops)
        return beam_search(read, logits, cache, slots, length, beams, ends, len(self._stops), self._pad)


def is_one_of(token: jax.Array, tokens: tuple[int, ...]) -> jax.Array:
    """Returns which of the tokens of any shape are among some."""
    return (token[..., None] == jnp.array(tokens, jnp.int32)).any(axis=-1)
