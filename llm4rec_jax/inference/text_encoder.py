"""Texts of a whole catalogue to vectors."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.batching.batch import token_group
from llm4rec_jax.data.batching.buckets import text_groups
from llm4rec_jax.data.batching.packing import pack, packed_rows, row_length
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.inference.batch_sizes import even_rows
from llm4rec_jax.inference.batched import FixedBatches, map_in_fixed_batches
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.models.text_encoder import TextEncoder
from llm4rec_jax.peft.core import Peft, forward
from llm4rec_jax.peft.sites import Delta, Params, constant_below
from llm4rec_jax.progress import track


class BatchTextEncoder:
    """Encodes any number of texts with a text encoder and a method.

    Each text is padded to a bucket that depends on its own length only, so its vector does not depend on the others.
    With `packing` in the encoder's configuration, texts lie side by side in rows instead, with less padding, and the
    last bits of a vector depend on its place in a row.

    Args:
      model: The text encoder.
      method: Parameter-efficient method, brought `within` the part that it adapts.
      mesh: The devices.

    Raises:
      ValueError: texts are to be packed, and the method adds tokens to each row.

    Example:
      >>> from llm4rec_jax import peft
      >>> from llm4rec_jax.models.encoders.bert import Bert, BertConfig
      >>> from llm4rec_jax.models.encoders.pooling import POOLINGS
      >>> from llm4rec_jax.sharding import make_mesh
      >>> config = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
      >>> model, method = TextEncoder(Bert(config), POOLINGS.build("mean")), peft.create("frozen")
      >>> tokens = Tokens(np.array([[3, 1, 4], [1, 5, 0]]), np.array([3, 2]))
      >>> params = model.init(jax.random.key(0), tokens.ids, tokens.ids > 0)["params"]
      >>> BatchTextEncoder(model, method, make_mesh()).encode((params, {}), tokens).shape
      (2, 8)
    """

    def __init__(self, model: TextEncoder, method: Peft, mesh: Mesh) -> None:
        self._config, self._mesh = model.encoder.config, mesh
        if self._config.packing and method.adds_tokens:
            raise ValueError(
                f"packing: rows hold several texts, but {method.name or 'the method'} puts tokens in front of each: "
                "give encoder.packing=False, or another method"
            )

        def batched(apply: str, *options: int | None, rows: int | None = None) -> FixedBatches:
            def run(weights: tuple[Params, Delta], *arrays: jax.Array) -> jax.Array:
                return forward(model, method, *weights, *options, *arrays, apply=apply)

            return map_in_fixed_batches(run, mesh, texts=True, rows=rows)

        self._encode = batched("__call__")
        self._encode_from = functools.cache(lambda layer: batched("encode_from", layer))
        self._encode_packed = functools.cache(lambda most, rows: batched("packed", most, rows=rows))
        self._hidden_states = functools.cache(lambda stop: batched("hidden_states", stop))

    def encode(self, weights: tuple[Params, Delta], tokens: Tokens, states: np.ndarray | None = None) -> np.ndarray:
        """Encodes texts.

        Args:
          weights: Parameters and delta.
          tokens: The n texts.
          states: Result of `hidden_states` for the lowest block that the delta changes (`sites.constant_below`). The
            blocks below are not computed again.

        Returns:
          Pooled vectors, [n, W].
        """
        if self._config.packing and states is None:
            return self._packed(weights, tokens)
        groups = text_groups(tokens.lengths, self._config.max_position_embeddings)
        if states is None:
            parts = self._encode.each(weights, (token_group(tokens, *group) for group in groups))
        else:
            layer, reads_all = constant_below(weights[1], self._config.num_hidden_layers)
            known = (_states_of_group(states, tokens, *group) for group in groups)
            parts = self._encode_from(None if reads_all else layer).each(weights, known)
        vectors = np.concatenate(list(track(parts, "encode", len(tokens.ids), "texts", len)))
        return vectors[np.argsort(np.concatenate([rows for rows, _ in groups]))]

    def _packed(self, weights: tuple[Params, Delta], tokens: Tokens) -> np.ndarray:
        packing = pack(tokens.lengths, row_length(tokens.lengths, self._config.max_position_embeddings))
        run = self._encode_packed(packing.most, even_rows(self._mesh, packing.rows, packing.length))
        vectors = run(weights, *packed_rows(tokens, packing))
        return vectors[packing.row, packing.number - 1]

    def hidden_states(self, weights: tuple[Params, Delta], tokens: Tokens, stop: int | None) -> np.ndarray:
        """Computes the hidden states of n texts before block `stop`.

        Returns:
          [n, L, W], zeros beyond a text's bucket. With `stop` None, those before and after every block, [n, L, S, W].
        """
        shape = self.hidden_states_shape(tokens, stop)
        groups = text_groups(tokens.lengths, self._config.max_position_embeddings)
        states, longest = np.zeros(shape.shape, shape.dtype), shape.shape[1]
        computed = self._hidden_states(stop).each(weights, (token_group(tokens, *group) for group in groups))
        computed = track(computed, "encode", len(tokens.ids), "texts", len)
        for (rows, length), some in zip(groups, computed, strict=True):
            states[rows, :length] = some[:, :longest]
        return states

    def shape(self, tokens: Tokens) -> jax.ShapeDtypeStruct:
        """Returns shape and type of `encode`."""
        return jax.ShapeDtypeStruct((len(tokens.ids), self._config.hidden_size), np.float32)

    def hidden_states_shape(self, tokens: Tokens, stop: int | None) -> jax.ShapeDtypeStruct:
        """Returns shape and type of `hidden_states`."""
        c = self._config
        blocks = () if stop is not None else (c.num_hidden_layers + 1,)
        return jax.ShapeDtypeStruct((len(tokens.ids), int(tokens.lengths.max()), *blocks, c.hidden_size), c.dtype)


def check_token_ids(tokens: Tokens, encoder: Encoder, folder: Path) -> Tokens:
    """Returns tokens all of which the encoder has an embedding of; ValueError names the largest that it has not."""
    size, largest = encoder.config.vocab_size, int(tokens.ids.max(initial=0))
    if largest >= size:
        raise ValueError(
            f"{folder}: its tokenizer gives the token {largest}, and the encoder has embeddings of the tokens below "
            f"{size} only: tokens were added without `resize_token_embeddings`; give the tokenizer of the encoder"
        )
    return tokens


def _states_of_group(states: np.ndarray, tokens: Tokens, rows: np.ndarray, length: int) -> tuple[np.ndarray, Any]:
    """Returns the states of some texts, padded to their bucket, which the longest text may not fill, and their mask."""
    some = states[rows, :length]
    some = np.pad(some, ((0, 0), (0, length - some.shape[1]), *((0, 0),) * (some.ndim - 2)))
    return some, token_group(tokens, rows, length).mask
