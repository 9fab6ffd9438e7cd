"""Vectors of texts by an encoder as it came, cached on disk: runs of a sweep share them."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm4rec_jax import peft, sharding
from llm4rec_jax.data import cache
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.inference.text_encoder import BatchTextEncoder
from llm4rec_jax.models.text_encoder import TextEncoder
from llm4rec_jax.sharding import digest


def text_vectors(
    model: TextEncoder, params: dict[str, Any], tokens: Tokens, cache_dir: Path | None = None
) -> np.ndarray:
    """Pooled vectors of texts, float32 [n, W].

    Args:
      model: Encoder and pooling.
      params: Their parameters, {"encoder": …, "pooling": …}.
      tokens: The texts.
      cache_dir: Folder of the cache, see `cache.get_or_compute`; by default llm4rec_jax/vectors in $XDG_CACHE_HOME or
        ~/.cache.
    """

    def read() -> dict[str, np.ndarray]:
        method = peft.create("frozen")
        weights = params, method.init(jax.random.key(0), params)
        vectors = BatchTextEncoder(model, method, sharding.make_mesh()).encode(weights, tokens)
        return {"vectors": np.asarray(vectors, np.float32)}

    key = hashlib.sha256(f"{digest(params)} {model.encoder} {model.pooling} {digest(tuple(tokens))}".encode())
    return cache.get_or_compute(cache_dir or cache.default_folder("vectors"), key.hexdigest(), "vectors", read)[
        "vectors"
    ]
