"""Quality of weights in few bits: vectors of films against those of float32 weights, and next-token loss."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks import machine
from experiments.benchmarks.encode import FILMS, MAX_TOKENS
from llm4rec_jax import peft, sharding
from llm4rec_jax.data import sources
from llm4rec_jax.data.features import text, tokens
from llm4rec_jax.inference.text_encoder import BatchTextEncoder
from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.text_encoder import TextEncoder

FORMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"compute_dtype": "bfloat16"},
    "int8": {"compute_dtype": "bfloat16", "quantize": "int8"},
    "nf4": {"compute_dtype": "bfloat16", "quantize": "nf4"},
}
NEIGHBOURS = 10
BATCH = 32


def run() -> Iterator[dict[str, Any]]:
    """Every form of --encoder on the films of MovieLens-100k, activations in bfloat16 except with float32."""
    films = text.item_texts(sources.load("movielens_100k").items, FILMS)
    yield from measure(films, machine.encoder())


def measure(texts: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Compares the vectors of texts, the mean of the last hidden states, with those of float32, form by form."""
    folder = huggingface.resolve(folder)
    causal = huggingface.read_config(folder)[0].causal
    read = tokens.encode(texts, tokens.tokenizer(folder), MAX_TOKENS)
    exact: np.ndarray | None = None
    for form, how in FORMS.items():
        encoder, params = huggingface.load(folder, dropout=0.0, language_head=causal, **how)
        model, method = TextEncoder(encoder, POOLINGS.build("mean")), peft.create("frozen")
        weights = {"encoder": params}, method.init(jax.random.key(0), {"encoder": params})
        vectors = _unit(np.asarray(BatchTextEncoder(model, method, sharding.make_mesh()).encode(weights, read)))
        exact = vectors if exact is None else exact
        loss = next_token_loss(encoder, params, read) if causal else None
        yield {
            "encoder": folder.name,
            "form": form,
            "texts": len(texts),
            "cosine": float((vectors * exact).sum(1).mean()),
            "lowest_cosine": float((vectors * exact).sum(1).min()),
            f"same_neighbours@{NEIGHBOURS}": shared_neighbours(vectors, exact),
            **({} if loss is None else {"next_token_loss": loss}),
        }


def shared_neighbours(vectors: np.ndarray, exact: np.ndarray) -> float:
    """Returns the share of each vector's nearest neighbours that are the same in both, unit vectors [N, D].

    Example:
      >>> angles = np.arange(30)[:, None] ** 1.5 / 100
      >>> circle = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
      >>> shared_neighbours(circle, circle), shared_neighbours(circle, circle[::-1]) < 1
      (1.0, True)
    """

    def nearest(vectors: np.ndarray) -> np.ndarray:
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        return np.argsort(-scores, axis=1)[:, :NEIGHBOURS]

    pairs = zip(nearest(vectors), nearest(exact), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / NEIGHBOURS for a, b in pairs]))


def next_token_loss(decoder: Any, params: Any, read: tokens.Tokens) -> float:
    """Returns the mean negative log likelihood of every token but the first of each text, in nats."""

    @jax.jit
    def total(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        states = decoder.apply({"params": params}, ids, mask)
        logits = decoder.apply({"params": params}, states, method="logits").astype(np.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
        return (losses * mask[:, 1:]).sum()

    missing = -len(read.ids) % BATCH
    ids = np.pad(read.ids, ((0, missing), (0, 0)))
    mask = np.arange(ids.shape[1]) < np.pad(read.lengths, (0, missing))[:, None]
    starts = range(0, len(ids), BATCH)
    return sum(float(total(params, ids[i : i + BATCH], mask[i : i + BATCH])) for i in starts) / (read.lengths - 1).sum()


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
