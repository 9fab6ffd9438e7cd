"""Item vectors as tokens of a prompt, through a trained projection to the width of the language model."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.sites import Delta, Params

_WORD = "embeddings/word"


def item_vector_tokens(vectors: np.ndarray, vocab_size: int) -> Peft:
    """Lets token `vocab_size` + i be item i: its vector through a trained MLP of two layers, in place of a word's.

        e_i = W₂ gelu(W₁ z_i + b₁) + b₂

    z_i is the vector of the item, after the mean of all is subtracted and they are scaled to unit variance. The
    vectors themselves are not trained. At the start, e_i has about the scale of the word embeddings. Chain it after the
    method that tunes the language model, or after "frozen" to train the projection alone. Texts without such tokens
    are read as before.

    Args:
      vectors: [I, W] of the items, from a model that was trained on interactions.
      vocab_size: Number of tokens that the language model has embeddings of.

    Returns:
      The method; its delta is {"embeddings/word": {"first", "first_bias", "second", "second_bias"}}.

    Raises:
      ValueError: The vectors are all the same.

    Example:
      >>> from llm4rec_jax import peft
      >>> method = peft.chain(peft.create("frozen"), item_vector_tokens(np.eye(3, 5), vocab_size=40))
      >>> delta = method.init(jax.random.key(0), {"embeddings": {"word": {"embedding": jnp.ones((40, 8))}}})
      >>> method.name, {name: array.shape for name, array in delta["1"]["embeddings/word"].items()}
      ('frozen+item_vectors', {'first': (5, 8), 'first_bias': (8,), 'second': (8, 8), 'second_bias': (8,)})

    References:
      Zhang et al., CoLLM: Integrating Collaborative Embeddings into Large Language Models for Recommendation, 2023
      (https://arxiv.org/abs/2310.19488).
      Liao et al., LLaRA: Large Language-Recommendation Assistant, 2023 (https://arxiv.org/abs/2312.02445).
    """
    centred = np.asarray(vectors, np.float32) - np.mean(vectors, axis=0, dtype=np.float32)
    if not (scale := float(centred.std())):
        raise ValueError(f"the vectors of all {len(vectors)} items are the same: give those of a trained model")
    table = centred / scale

    def init(key: jax.Array, params: Params) -> Delta:
        words = jnp.asarray(params["embeddings"]["word"]["embedding"], jnp.float32)
        width, (first, second) = words.shape[1], jax.random.split(key)
        # A gelu halves the mean square of standard normal numbers, nearly: 0.43.
        return {
            _WORD: {
                "first": jax.random.normal(first, (table.shape[1], width)) * table.shape[1] ** -0.5,
                "first_bias": jnp.zeros(width),
                "second": jax.random.normal(second, (width, width)) * jnp.std(words) * (2 / width) ** 0.5,
                "second_bias": jnp.zeros(width),
            }
        }

    def tap(delta: Delta, site: str, call: Call, *args: Any) -> Any:
        if site != _WORD:
            return call(*args)
        (ids,) = args
        words, mlp = call(jnp.minimum(ids, vocab_size - 1)), delta[_WORD]
        items = jnp.asarray(table)[jnp.maximum(ids - vocab_size, 0)]
        tokens = nn.gelu(items @ mlp["first"] + mlp["first_bias"]) @ mlp["second"] + mlp["second_bias"]
        return jnp.where((ids >= vocab_size)[..., None], tokens.astype(words.dtype), words)

    return Peft(init, tap=tap, name="item_vectors")
