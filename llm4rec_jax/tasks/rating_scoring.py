"""Scores of questions: text vectors, read anew or once for all, and a head that answers by them."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.batching.batch import token_group
from llm4rec_jax.data.batching.buckets import bucket, token_bucket
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.labeled import LabeledExamples
from llm4rec_jax.inference.text_encoder import BatchTextEncoder
from llm4rec_jax.models.text_encoder import TextEncoder
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.sharding import make_mesh, place

Array: TypeAlias = jax.Array | np.ndarray

# Questions that are scored at once.
_TILE = 256


class Reader(NamedTuple):
    """A reader of texts, and the way in which a question refers to them.

    Attributes:
      model: Encoder and pooling.
      method: adapts the encoder, brought `within` it.
      tokens: of all T texts.
      prompts: whether a text is a question's prompt. Otherwise text i is item i.
      vectors: [T, W] of all texts, by an encoder that stays as it is; None: they are read anew at every step.
      centre: [W], taken off every vector before it is brought to unit length.
    """

    model: TextEncoder
    method: Peft
    tokens: Tokens
    prompts: bool
    vectors: Array | None
    centre: Array


class Questions(NamedTuple):
    """A batch.

    Attributes:
      history: [B, H] and target: [B], text numbers, or positions in `texts`; history is None where prompts are read.
      liked, mask: [B, H], label: [B]; float32.
      texts: ids and mask [U, L] of the batch's texts, each once, where they are read anew.
      users: rows of the user table [B], on the host only.
      ratings: number of different ratings that are trained on in all, by which the prior is divided.
    """

    history: Array | None
    target: Array
    liked: Array
    mask: Array
    label: Array
    texts: tuple[Array, Array] | None = None
    users: np.ndarray | None = None
    ratings: Any = None


Scorer = Callable[[Any, Any, LabeledExamples, np.ndarray], np.ndarray]
"""(trainable, frozen parameters, questions, their prompts' text numbers [n]) -> logits float64 [n]."""


def batch(rows: LabeledExamples, prompts: np.ndarray, reader: Reader) -> Questions:
    """Questions as a batch, with the texts that they need where those are read anew.

    Args:
      rows: B questions.
      prompts: the text numbers of their prompts [B]; unused where texts are items.
      reader: see `Reader`.
    """
    target = prompts if reader.prompts else rows.target
    history = None if reader.prompts else rows.history
    liked, mask = (rows.liked & rows.mask).astype(np.float32), rows.mask.astype(np.float32)
    found = Questions(history, target.astype(np.int32), liked, mask, rows.label, users=rows.user)
    if reader.vectors is not None:
        return found
    texts = np.unique(target if history is None else np.append(history, target))
    padded = np.pad(texts, (0, bucket(len(texts)) - len(texts)), mode="edge")
    most = reader.model.encoder.config.max_position_embeddings
    length = token_bucket(int(reader.tokens.lengths[padded].max()), most)
    return found._replace(
        history=None if history is None else np.searchsorted(texts, history).astype(np.int32),
        target=np.searchsorted(texts, target).astype(np.int32),
        texts=tuple(token_group(reader.tokens, padded, length)),
    )


def logits(
    head: nn.Module, params: Any, centre: Array, vectors: Any, asked: Questions, every: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits, labels and whether they count, [B, T] each.

    Args:
      head: of `models.answers`, with its params.
      centre: [W].
      vectors: [T, W] of the texts that `asked` points to.
      asked: the questions.
      every: whether to ask for every answer of the history too, T = H + 1, each from the others; otherwise T = 1.
    """
    vectors = vectors - centre
    vectors = vectors * jax.lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(-1, keepdims=True), 1e-12))
    target, history = vectors[asked.target][:, None], None if asked.history is None else vectors[asked.history]
    liked, mask, label = jnp.asarray(asked.liked), jnp.asarray(asked.mask), jnp.asarray(asked.label)[:, None]
    # The place of an answer in its history, from 1; the target's comes after all.
    place = jnp.cumsum(mask, axis=1)
    at, visible, counts = place[:, -1:] + 1.0, mask[:, None], jnp.ones_like(label)
    if every:
        assert history is not None
        target, at = jnp.concatenate([history, target], axis=1), jnp.concatenate([place, at], axis=1)
        label, counts = jnp.concatenate([liked, label], axis=1), jnp.concatenate([mask, counts], axis=1)
        itself = jnp.eye(mask.shape[1] + 1, mask.shape[1])
        visible = visible * (1.0 - itself)
    age = jnp.maximum(jnp.abs(at[:, :, None] - place[:, None]) - 1.0, 0.0)
    scores = head.apply({"params": params}, target, history, liked, jnp.broadcast_to(visible, age.shape), age)
    assert isinstance(scores, jax.Array)
    return scores, label, counts


def start(head: nn.Module, width: int, key: jax.Array) -> Any:
    """A head's parameters at the start, for vectors [W = width]."""
    vectors, one = jnp.zeros((1, 1, width)), jnp.ones((1, 1))
    return dict(jax.jit(head.init)(key, vectors, vectors, one, one[None], one[None])["params"])


def scorer(head: nn.Module, reader: Reader, mesh: Mesh | None = None) -> Scorer:
    """Scores questions with any parameters, in tiles of one shape."""
    encode, mesh = None, mesh or make_mesh()
    if reader.vectors is None:
        encode = BatchTextEncoder(reader.model, reader.method, mesh).encode

    @jax.jit
    def tile(params: Any, vectors: Any, asked: Questions) -> jax.Array:
        return logits(head, params, reader.centre, vectors, asked)[0][:, 0]

    def scores(trainable: Any, frozen: Any, rows: LabeledExamples, prompts: np.ndarray) -> np.ndarray:
        vectors = reader.vectors
        if encode is not None:
            needed = np.unique(prompts if reader.prompts else np.append(rows.history, rows.target))
            # A restored state lies on one device, and texts are split over all.
            weights = place(({**frozen, **trainable["params"]}, trainable["delta"]), mesh)
            vectors = np.asarray(encode(weights, Tokens(reader.tokens.ids[needed], reader.tokens.lengths[needed])))
            if reader.prompts:
                prompts = np.searchsorted(needed, prompts)
            else:
                history, target = (
                    np.searchsorted(needed, items).astype(np.int32) for items in (rows.history, rows.target)
                )
                rows = rows._replace(history=history, target=target)
        found = []
        # The texts that `batch` would look up have been encoded above.
        known = reader._replace(vectors=vectors)
        for at in range(0, rows.size, _TILE):
            index = np.minimum(np.arange(at, at + _TILE), rows.size - 1)
            found.append(
                tile(
                    trainable["params"]["answers"],
                    vectors,
                    batch(rows.take(index), prompts[index], known)._replace(users=None),
                )
            )
        return np.asarray(jnp.concatenate(found)[: rows.size], np.float64)

    return scores
