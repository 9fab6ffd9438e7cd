"""Hidden states of texts by a frozen language model as a feature, cached on disk for all runs."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from llm4rec_jax import sharding
from llm4rec_jax.data import assets, cache
from llm4rec_jax.data.batching.batch import token_group
from llm4rec_jax.data.batching.buckets import text_groups
from llm4rec_jax.data.features.columns import FEATURES, FittedFeature, Rows
from llm4rec_jax.data.features.tokens import Tokens, tokenise
from llm4rec_jax.data.features.vectors import check_layers, fit_vectors, of_rows
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.inference.batched import map_in_fixed_batches
from llm4rec_jax.inference.text_encoder import check_token_ids
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.models.encoders.huggingface import load, resolve
from llm4rec_jax.models.encoders.sentence_folder import describe


@FEATURES.register("text_states")
def text_states(
    rows: Rows, *, column: str, model: str, layers: Sequence[int], max_tokens: int = 64, standardise: bool = True
) -> FittedFeature:
    """Reads hidden states of a frozen language model over a column of texts. Rows without a text are masked.

    The state of the first token is taken from each layer, so the model must read in both directions, as BERT does.

    Args:
      rows: The table and its training rows.
      column: The column of texts.
      model: Folder, hub name or name in `assets.LANGUAGE_MODELS` of the language model, with its tokenizer.
      layers: Layers whose states are the feature, for the fusion "iisan": 0 stands before the first block, k after
        block k.
      max_tokens: Largest number of tokens of a text, special ones included.
      standardise: Whether each dimension is brought to mean 0 and standard deviation 1 over the training rows.

    Raises:
      ValueError: There is no such column, the layers are out of range, or the model reads in one direction.
      DataError: The column holds no texts, or training has none.
      PretrainedError: The language model cannot be read.
    """
    series = rows.column(column)
    if series.dtype != pl.String:
        raise DataError(f"the {rows.name} column {column!r} holds {series.dtype} and no texts; give a column of texts")
    texts = series.fill_null("").str.strip_chars()
    present = (texts != "").to_numpy()
    if not (present & rows.trained).any():
        raise DataError(f"the {rows.name} column {column!r} has a text in no training row; leave the feature out")
    folder = describe(resolve(assets.language_model(model)))
    encoder, params = load(folder.model)
    if encoder.family.causal:
        raise ValueError(
            f"{folder.model}: {encoder.config.model_type} reads from left to right, and its first token has not read "
            "the text; give a model that reads in both directions, such as BERT"
        )
    layers = check_layers(layers, encoder.config.num_hidden_layers)
    prepared = folder.prepare(texts.filter(present).to_list())
    tokens = check_token_ids(tokenise(prepared, folder.model, max_tokens), encoder, folder.model)
    states = first_token_states(encoder, params, tokens, layers)
    place = np.where(present, np.cumsum(present) - 1, -1)
    fitted = {"kind": "text_states", "rows": len(prepared), "width": states.shape[-1], "layers": list(layers)}
    return fit_vectors(rows, of_rows(states, place), present, fitted, standardise=standardise, project="none")


def first_token_states(
    encoder: Encoder, params: dict[str, Any], tokens: Tokens, layers: Sequence[int], cache_dir: Path | None = None
) -> np.ndarray:
    """Computes the first token's hidden states after chosen blocks, or reads them from the cache.

    Args:
      encoder, params: The language model.
      tokens: The n texts.
      layers: K layers; 0 stands before the first block.
      cache_dir: Folder of the cache, see `cache.get_or_compute`; by default llm4rec_jax/vectors in $XDG_CACHE_HOME or
        ~/.cache.

    Returns:
      float32 [n, K, W].
    """
    chosen = list(layers)

    def states_of(params: dict[str, Any], ids: jax.Array, mask: jax.Array) -> jax.Array:
        states: Any = encoder.apply({"params": params}, ids, mask, method="all_hidden_states")
        return states[:, 0, np.array(chosen)].astype(np.float32)

    def read() -> dict[str, np.ndarray]:
        groups = text_groups(tokens.lengths, encoder.config.max_position_embeddings)
        run = map_in_fixed_batches(states_of, sharding.make_mesh(), texts=True)
        computed = run.each(params, (token_group(tokens, *group) for group in groups))
        states = np.concatenate(list(computed))
        return {"states": states[np.argsort(np.concatenate([rows for rows, _ in groups]))]}

    key = f"{sharding.digest(params)} {encoder} {chosen} {sharding.digest(tuple(tokens))}"
    folder = cache_dir or cache.default_folder("vectors")
    return cache.get_or_compute(folder, hashlib.sha256(key.encode()).hexdigest(), "states", read)["states"]
