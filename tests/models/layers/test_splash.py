"""Splash attention, interpreted on the CPU, against attention that is written out; and its lowering for a TPU."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.models.decoders.config import FULL, SLIDING, DecoderConfig
from llm4rec_jax.models.decoders.decoder import Decoder
from llm4rec_jax.models.encoders.base import find_family
from llm4rec_jax.models.layers import splash
from llm4rec_jax.models.layers.attention import attend
from llm4rec_jax.peft import create, forward
from tests.helpers import small

# Two texts side by side in the first row, one text and padding in the second.
LENGTH = 70
PACKED = np.zeros((2, LENGTH), np.int32)
PACKED[0, :41], PACKED[0, 41:66], PACKED[1, :9] = 1, 2, 1


@pytest.fixture
def interpreted(monkeypatch):
    make = splash.kernels.make_splash_mha
    monkeypatch.setattr(splash.kernels, "make_splash_mha", partial(make, interpret=True))


def draw(before: int, dtype: Any = np.float32):
    rng = np.random.default_rng(0)
    heads = {"q": (LENGTH, 4), "k": (before + LENGTH, 2), "v": (before + LENGTH, 2)}
    return tuple(jnp.asarray(rng.normal(size=(2, *shape, 24)), dtype) for shape in heads.values())


def visible(mask: np.ndarray, causal: bool, window: int | None, before: int) -> np.ndarray:
    """Keys that each token may attend to, [B, 1, L, S]."""
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    near = (distance >= 0) | (not causal)
    near &= np.abs(distance) < (window or LENGTH)
    tokens = near & (mask[:, :, None] == mask[:, None])
    return np.pad(tokens, ((0, 0), (0, 0), (before, 0)), constant_values=True)[:, None]


@pytest.mark.parametrize(
    ("mask", "causal", "window", "before", "softcap"),
    [
        (PACKED > 0, False, None, 0, None),
        (PACKED > 0, True, 5, 3, None),
        (PACKED, True, None, 0, 1.5),
        (PACKED, False, 7, 0, None),
        # A prefix that needs a second block of keys, which no query of the first row fills.
        (PACKED > 0, True, None, 60, None),
    ],
)
def test_states_and_gradients(interpreted, mask, causal, window, before, softcap):
    q, k, v = draw(before)
    keys = np.pad(mask, ((0, 0), (before, 0)), constant_values=1)
    allowed = jnp.asarray(visible(mask, causal, window, before))
    toward = jnp.asarray(np.random.default_rng(1).normal(size=q.shape) * (mask > 0)[..., None, None], jnp.float32)

    def run(attention):
        out, pull = jax.vjp(attention, q, k, v)
        return out * (toward != 0), *pull(toward)

    ours = jax.jit(run, static_argnums=0)(
        lambda q, k, v: splash.splash_attend(q, k, v, jnp.asarray(keys), causal, window, 0.3, softcap)
    )
    wanted = run(lambda q, k, v: attend(q, k, v, allowed, scale=0.3, softcap=softcap))
    for name, a, b in zip(("out", "q", "k", "v"), ours, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_lowered_for_a_tpu(dtype):
    mask = jnp.asarray(PACKED)

    def loss(*states: jax.Array) -> jax.Array:
        return splash.splash_attend(*states, mask, True, 5).astype(jnp.float32).sum()

    program = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*draw(0, dtype)).lower(lowering_platforms=("tpu",)).as_text()
    # Forward, and backward for queries and for keys.
    assert program.count("custom_call @tpu_custom_call") == 3


def decoder() -> Decoder:
    return Decoder(
        DecoderConfig(
            vocab_size=small.V, hidden_size=12, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=6, intermediate_size=8, layer_types=(FULL, SLIDING), sliding_window=2,
        )
    )  # fmt: skip


@pytest.mark.parametrize("encoder", [small.encoder(), decoder()], ids=["bert", "decoder"])
def test_an_encoder_with_a_prefix_and_with_packed_texts(interpreted, encoder):
    encoder = type(encoder)(encoder.config.with_dropout(0.0))
    params = encoder.init(jax.random.key(0), small.IDS, small.MASK)["params"]
    other = type(encoder)(dataclasses.replace(encoder.config, attention="splash"))
    packed = np.where(np.arange(5) < 2, 1, 2) * small.MASK
    method = create("prefix", {"prefix": {"length": 3}})
    delta = small.moved(method.init(jax.random.key(0), params), 1)
    alone = create("frozen")
    for args in ((method, params, delta, small.IDS, small.MASK), (alone, params, {}, small.IDS, packed)):
        apply = None if args[-1].dtype == bool else "packed"
        xla, ours = (np.asarray(forward(module, *args, apply=apply)) for module in (encoder, other))
        np.testing.assert_allclose(ours[small.MASK], xla[small.MASK], rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match=r"keys in front of a row are of one text only: give packing=False, or xla"):
        forward(other, method, params, delta, small.IDS, jnp.asarray(packed), apply="packed")


def test_what_the_kernel_has_not_is_refused():
    config = small.encoder().config
    with pytest.raises(ValueError, match=r"splash attention drops no weights, but 0\.1 of them are to be: give an"):
        dataclasses.replace(config, attention="splash", attention_probs_dropout_prob=0.1)
    config = find_family("mpnet").config_from_hf({"model_type": "mpnet"}).with_dropout(0.0)
    with pytest.raises(ValueError, match="splash attention adds nothing to scores, and mpnet adds distances: give xla"):
        dataclasses.replace(config, attention="splash")
