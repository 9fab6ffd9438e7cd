"""Texts of a catalogue to vectors: ours as evaluation and `experiments.encode` do it, against sentence-transformers."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.benchmarks import machine, timing
from llm4rec_jax import peft, sharding
from llm4rec_jax.data import assets, sources
from llm4rec_jax.data.batching.buckets import text_bucket
from llm4rec_jax.data.batching.packing import pack, row_length
from llm4rec_jax.data.features import text, tokens
from llm4rec_jax.inference.text_encoder import BatchTextEncoder
from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.text_encoder import TextEncoder

_TEXTS = flags.DEFINE_string("texts", None, "For the benchmark `encode`: a file whose lines are encoded too.")

MAX_TOKENS = 64
# How many texts sentence-transformers takes at once; the fastest is timed.
PEER_BATCHES = (32, 64, 128, 512)
FILMS = "{title} ({year}). {genres}"

# Titles have 2 to 10 words, as often as the short texts of an Amazon catalogue of cosmetics.
WORD_COUNTS = (0.012, 0.060, 0.152, 0.243, 0.264, 0.175, 0.069, 0.021, 0.004)
WORDS = (
    "nail polish lacquer shimmer gloss hair brush comb dryer straightener curling iron shampoo conditioner serum "
    "argan oil coconut keratin repair moisturizing daily facial cleanser scrub exfoliating toner vitamin retinol "
    "night cream eye gel wrinkle anti aging sunscreen spf lotion body wash soap bar lavender rose vanilla perfume "
    "eau de toilette spray men women travel set kit palette eyeshadow eyeliner mascara waterproof lipstick matte "
    "nude red pink violet pearl concealer foundation powder blush bronzer mineral natural organic sensitive skin "
    "dry oily mask charcoal peel acne treatment tweezers mirror sponge makeup case razor shaving beard balm tea "
    "tree aloe vera e55 no2 100ml 3oz pack of with and for"
)


def run() -> Iterator[dict[str, Any]]:
    """12,000 made-up titles, the films of MovieLens-100k, and the lines of --texts."""
    how = {"folder": machine.encoder(), "dtype": machine.dtype()}
    yield measure("titles", titles(12_000), 5, **how)
    yield measure("movielens_100k", text.item_texts(sources.load("movielens_100k").items, FILMS), 20, **how)
    if _TEXTS.value is not None:
        path = Path(_TEXTS.value)
        yield measure(path.name, path.read_text(encoding="utf-8").splitlines(), 5, **how)


def titles(count: int) -> list[str]:
    """Random titles, the same ones at each call."""
    rng = np.random.default_rng(0)
    words = WORDS.split()
    sizes = rng.choice(np.arange(2, 2 + len(WORD_COUNTS)), count, p=WORD_COUNTS)
    return [" ".join(rng.choice(words, size, replace=False)) for size in sizes]


def measure(
    name: str, texts: Sequence[str], repeats: int, folder: Path | None = None, dtype: str = "float32"
) -> dict[str, Any]:
    """Encodes strings to vectors, tokenising included, pooled by the mean and not normed."""
    folder = folder or assets.minilm()
    encode, encode_by = ours(texts, folder, dtype), peer(texts, folder, dtype)
    packed = ours(texts, folder, dtype, packing=True)
    vectors, theirs = encode(), encode_by(PEER_BATCHES[0])
    trial = timing.interleaved({str(size): partial(encode_by, size) for size in PEER_BATCHES}, repeats=1, warm=0)
    fastest = min(PEER_BATCHES, key=lambda size: trial[str(size)][0])
    times = timing.interleaved(
        {"ours": encode, "packed": packed, "torch": partial(encode_by, fastest)}, repeats, warm=1
    )
    tokenizer = tokens.tokenizer(folder)
    begun = time.perf_counter()
    read = tokens.encode(texts, tokenizer, MAX_TOKENS)
    tokenising = time.perf_counter() - begun
    rows = pack(read.lengths, row_length(read.lengths))
    return {
        "what": name,
        "encoder": folder.name,
        "dtype": dtype,
        "texts": len(texts),
        "tokens": int(read.lengths.sum()),
        "longest": int(read.lengths.max()),
        **timing.summary(times),
        "ours_tokenising_s": tokenising,
        "torch_batch": fastest,
        "padding": 1 - float(read.lengths.sum() / sum(map(text_bucket, read.lengths.tolist()))),
        "packed_padding": 1 - float(read.lengths.sum() / (rows.rows * rows.length)),
        "packed_difference": float(np.abs(vectors - packed()).max()),
        "largest_difference": float(np.abs(vectors - theirs).max()),
        "largest_value": float(np.abs(theirs).max()),
    }


def ours(texts: Sequence[str], folder: Path, dtype: str, packing: bool = False) -> Callable[[], np.ndarray]:
    """Encodes as evaluation and `text_vectors` do, or with texts packed into rows."""
    encoder, params = huggingface.load(folder, dropout=0.0, compute_dtype=dtype, packing=packing)
    model, method = TextEncoder(encoder, POOLINGS.build("mean")), peft.create("frozen")
    encode = BatchTextEncoder(model, method, sharding.make_mesh()).encode
    weights = {"encoder": params}, method.init(jax.random.key(0), {"encoder": params})
    tokenizer = tokens.tokenizer(folder)
    return lambda: encode(weights, tokens.encode(texts, tokenizer, MAX_TOKENS))


def peer(texts: Sequence[str], folder: Path, dtype: str) -> Callable[[int], np.ndarray]:
    """Encodes many texts at once: SDPA, inference mode, all cores or the GPU; it sorts texts by length.

    In bfloat16 its weights are, too.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    from experiments.benchmarks import torch_device

    torch.set_num_threads(os.cpu_count() or 1)
    model = {"attn_implementation": "sdpa", "dtype": dtype}
    reader = Transformer(str(folder), max_seq_length=MAX_TOKENS, model_kwargs=model)
    encoder = SentenceTransformer(
        modules=[reader, Pooling(reader.get_embedding_dimension())], device=str(torch_device.DEVICE)
    )

    def encode(batch: int) -> np.ndarray:
        return encoder.encode(list(texts), batch_size=batch, show_progress_bar=False)

    return encode
