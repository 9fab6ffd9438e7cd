"""Vectors of texts by an encoder as it came, cached on disk: runs of a sweep share them."""

import contextlib
import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm4rec_jax import peft, sharding
from llm4rec_jax.checkpoint import digest
from llm4rec_jax.data.tokens import Tokens
from llm4rec_jax.models.recommender import Recommender
from llm4rec_jax.scoring import RecommenderScorer

_DIGEST_BYTES = 32


def text_vectors(model: Recommender, params: dict[str, Any], tokens: Tokens, cache: Path | None = None) -> np.ndarray:
    """Pooled vectors of texts, float32 [n, W].

    Args:
      model: its encoder and pooling are used.
      params: theirs, {"encoder": …, "pooling": …}.
      tokens: of the texts.
      cache: a folder; by default llm4rec_jax/vectors in $XDG_CACHE_HOME or ~/.cache. A damaged file is made again, and
        a folder that cannot be written is done without, both with a warning.
    """
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm4rec_jax" / "vectors"
    key = hashlib.sha256(f"{digest(params)} {model.encoder} {model.pooling} {digest(tuple(tokens))}".encode())
    file = folder / f"{key.hexdigest()}.npy"
    if file.is_file():
        content = file.read_bytes()
        whole = content[:-_DIGEST_BYTES]
        if hashlib.sha256(whole).digest() == content[-_DIGEST_BYTES:]:
            return np.load(io.BytesIO(whole), allow_pickle=False)
        warnings.warn(f"cached vectors {file} are damaged; the texts are read again", stacklevel=2)
    method = peft.create("frozen")
    scorer = RecommenderScorer(model, method, sharding.make_mesh(), tokens, None, 1)
    vectors = np.asarray(scorer.text(params, method.init(jax.random.key(0), params)), np.float32)
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    scratch = file.with_suffix(f".tmp{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
        os.replace(scratch, file)
    except OSError as error:
        warnings.warn(f"vectors are not cached: cannot write {file} ({error})", stacklevel=2)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()
    return vectors
