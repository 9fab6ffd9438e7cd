"""The cost of a training step against full fine-tuning, in floating-point operations as XLA counts them."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from llm4rec_jax.models.encoders.bert import Bert, BertConfig
from llm4rec_jax.peft import create, forward

D, F, N, TEXTS, LENGTH = 128, 512, 4, 32, 32
ENCODER = Bert(
    BertConfig(
        vocab_size=200,
        hidden_size=D,
        num_hidden_layers=N,
        num_attention_heads=4,
        intermediate_size=F,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
)


def flops(name: str, options: Mapping[str, Any] | None = None, cached: str | None = None) -> float:
    """Counts one step: the loss, its gradient in the delta, and the update. Nothing is run.

    Args:
      cached: "all" when the states of every block are at hand, "last" when those before the last block are.
    """
    method = create(name, {name: options or {}})
    mask = jax.ShapeDtypeStruct((TEXTS, LENGTH), bool)
    ids = jax.ShapeDtypeStruct((TEXTS, LENGTH), jnp.int32)
    weights = jax.ShapeDtypeStruct((TEXTS, LENGTH, D), jnp.float32)
    known = {
        None: ids,
        "all": jax.ShapeDtypeStruct((TEXTS, LENGTH, N + 1, D), jnp.float32),
        "last": jax.ShapeDtypeStruct((TEXTS, LENGTH, D), jnp.float32),
    }[cached]
    layer = N - 1 if cached == "last" else None
    params = jax.eval_shape(ENCODER.init, jax.random.key(0), ids, mask)["params"]
    delta = jax.eval_shape(method.init, jax.random.key(0), params)
    tx = method.optimizer(optax.adam(1e-3), 1000)

    def step(delta, state, params, known, mask, weights):
        def loss(delta):
            if cached is None:
                states = forward(ENCODER, method, params, delta, known, mask)
            else:
                states = forward(ENCODER, method, params, delta, layer, known, mask, apply="encode_from")
            return (states * weights).sum() + method.penalty(delta)

        value, grads = jax.value_and_grad(loss)(delta)
        updates, state = tx.update(grads, state, delta)
        return value, optax.apply_updates(delta, updates), state

    lowered = jax.jit(step).lower(delta, jax.eval_shape(tx.init, delta), params, known, mask, weights)
    # The passes after XLA's own take time and change no count.
    compiled = lowered.compile({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": True})
    # XLA would count one turn of a loop, and nothing of a call.
    assert not any(word in compiled.as_text() for word in ("custom-call", " while(", " conditional("))
    return compiled.cost_analysis()["flops"]


@cache
def full() -> float:
    return flops("full")


def test_the_count_is_that_of_the_products():
    """Forward, and twice as much backward: eight D² and two times two D F a token and block, and the attention."""
    products = 3 * N * TEXTS * LENGTH * (8 * D**2 + 4 * D * F + 4 * LENGTH * D)
    assert products < full() < 1.15 * products


@pytest.mark.parametrize(
    ("name", "options", "cached", "bound"),
    [
        ("lora", {}, None, 0.70),
        ("ia3", {}, None, 0.70),
        ("houlsby", {}, None, 0.70),
        ("pfeiffer", {}, None, 0.70),
        ("parallel", {}, None, 0.70),
        ("compacter", {}, None, 0.70),
        ("bitfit", {}, None, 0.70),
        ("layernorm", {}, None, 0.70),
        ("dora", {}, None, 0.75),
        ("side", {}, "all", 0.15),
        # Its blocks are half as wide as this encoder's.
        ("k_adapter", {}, "all", 0.40),
        ("lora", {"target": rf"layer_{N - 1}/.*/(query|value)"}, "last", 0.20),
    ],
)
def test_share_of_full_fine_tuning(name, options, cached, bound):
    assert flops(name, options, cached) <= bound * full()
