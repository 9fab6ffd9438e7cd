"""Memory of a training step of a language model, by compiling it from shapes: no weights are allocated."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm4rec_jax import peft
from llm4rec_jax.models import text_encoder
from llm4rec_jax.models.encoders.huggingface import abstract_params
from llm4rec_jax.models.text_encoder import TextEncoder
from llm4rec_jax.training.optimizer import optimizer

_TEMPERATURE = 20.0


def training_memory(
    model: TextEncoder,
    method: peft.Peft,
    texts: int,
    tokens: int,
    compiler_options: Mapping[str, Any] | None = None,
    quantize: str | None = None,
) -> dict[str, Any]:
    """Compiles one step of AdamW on an in-batch softmax between two halves of the texts.

    With the method `frozen` the step has no backward pass.

    Args:
      model: The text encoder.
      method: Method for the bare encoder.
      texts: Number of texts in the batch, even.
      tokens: Number of tokens of each.
      compiler_options: Options of XLA.
      quantize: Format of the frozen weights; see `config.encoder.quantize`.

    Returns:
      "frozen", "trained" (delta and optimizer), "temporary" and "total" in bytes; "trace_s" and "compile_s", the
      seconds that tracing and compiling took.
    """
    frozen: Any = jax.eval_shape(lambda key: text_encoder.init(model, key), jax.random.key(0))
    frozen |= {"encoder": abstract_params(model.encoder, quantize)}
    delta = jax.eval_shape(lambda params: method.init(jax.random.key(0), params["encoder"]), frozen)
    adapted = peft.within(method, "encoder")
    trainable = {"delta": {"encoder": delta}, "params": {}}
    tx = optimizer(adapted, trainable, learning_rate=1e-4, steps=1000)

    def loss(trainable: Any, frozen: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        vectors = peft.forward(model, adapted, frozen, trainable["delta"], ids, mask)
        half = len(vectors) // 2
        scores = vectors[:half] @ vectors[half:].T / _TEMPERATURE
        targets = jnp.arange(half)
        return optax.softmax_cross_entropy_with_integer_labels(scores, targets).mean() + adapted.penalty(
            trainable["delta"]
        )

    def step(frozen: Any, state: Any, ids: jax.Array, mask: jax.Array) -> Any:
        value, grads = jax.value_and_grad(loss)(state["trainable"], frozen, ids, mask)
        updates, opt_state = tx.update(grads, state["opt_state"], state["trainable"])
        return {"trainable": optax.apply_updates(state["trainable"], updates), "opt_state": opt_state}, value

    state = {"trainable": trainable, "opt_state": jax.eval_shape(tx.init, trainable)}
    ids, mask = (jax.ShapeDtypeStruct((texts, tokens), kind) for kind in (jnp.int32, jnp.bool_))
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=1).lower(frozen, state, ids, mask)
    traced = time.perf_counter()
    compiled = lowered.compile(dict(compiler_options or {}))
    done = time.perf_counter()
    analysis: Any = compiled.memory_analysis()
    # A run keeps all frozen arrays, also those whose trained copies the step reads in their place.
    held = {"frozen": _size(frozen), "trained": _size(state), "temporary": analysis.temp_size_in_bytes}
    return {**held, "total": sum(held.values()), "trace_s": traced - start, "compile_s": done - traced}


def _size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
