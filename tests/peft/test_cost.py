"""The cost of a training step in floating-point operations: by formula, by XLA, and as a share of full fine-tuning."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from llm4rec_jax.models.encoders.bert import Bert, BertConfig
from llm4rec_jax.peft import create, forward
from llm4rec_jax.training.flops import count_flops

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


def traced(name: str, options: Mapping[str, Any] | None = None, cached: str | None = None) -> jax.stages.Traced:
    """Traces one step: the loss, its gradient in the delta, and the update. Nothing is run.

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

    return jax.jit(step).trace(delta, jax.eval_shape(tx.init, delta), params, known, mask, weights)


def flops(name: str, options: Mapping[str, Any] | None = None, cached: str | None = None) -> float:
    return count_flops(traced(name, options, cached).jaxpr)


@cache
def full() -> float:
    return flops("full")


# Weights of a block that multiply every token, and the attention's two products for a token.
BLOCK, ATTENTION = 4 * D**2 + 2 * D * F, 2 * LENGTH * D
# The first block's input takes no gradient, and its keys are constants.
UNUSED = 2 * 3 * D**2 + ATTENTION


@pytest.mark.parametrize(
    ("name", "options", "cached", "a_token"),
    [
        ("full", {}, None, N * (6 * BLOCK + 6 * ATTENTION)),
        ("bitfit", {}, None, N * (4 * BLOCK + 6 * ATTENTION)),
        ("lora", {"rank": 4}, None, N * (4 * BLOCK + 6 * ATTENTION + 6 * 2 * 2 * 4 * D) - UNUSED),
        ("lora", {"rank": 4, "target": rf"layer_{N - 1}/.*/(query|value)"}, "last",
         4 * BLOCK + 6 * ATTENTION + 6 * 2 * 2 * 4 * D - UNUSED),
    ],
)  # fmt: skip
def test_the_count_is_the_formula(name, options, cached, a_token):
    """6N FLOPs a token where N weights are trained, 4N where they are frozen, and the attention's products."""
    assert flops(name, options, cached) == pytest.approx(TEXTS * LENGTH * a_token, rel=0.02)


@pytest.mark.parametrize("name", ["full", "lora"])
def test_xla_counts_the_products_and_little_more(name):
    # The passes after XLA's own take time and change no count.
    lowered = traced(name).lower()
    compiled = lowered.compile({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": True})
    # XLA would count one turn of a loop, and nothing of a call.
    assert not any(word in compiled.as_text() for word in ("custom-call", " while(", " conditional("))
    assert flops(name) < compiled.cost_analysis()["flops"] < 1.15 * flops(name)


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
