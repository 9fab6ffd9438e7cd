"""Frequencies of every `rope_type` against transformers, rotation against the definition, and what is refused."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llm4rec_jax.models.layers.rotary import Rope, inverse_frequencies, rope_from_hf, rope_to_hf, rotate, rotation

LONG = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn, by hand": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 48,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
        "truncate": False,
    },
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": 32, **LONG},
    "longrope, by hand": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 32,
        "attention_factor": 1.7,
        **LONG,
    },
}


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name):
    given = {"rope_theta": 700.0, **SCALINGS[name]}
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=4, max_position_embeddings=128, rope_parameters=dict(given)
    )
    kind = given["rope_type"]
    if kind == "default":
        wanted, scale = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        wanted, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    rope = rope_from_hf(given, 128)
    ours, our_scale = inverse_frequencies(rope, 8)
    np.testing.assert_allclose(ours, wanted.numpy(), rtol=1e-6)
    assert our_scale == pytest.approx(scale, rel=1e-7)
    assert rope_from_hf(rope_to_hf(rope), 128) == rope


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_head_is_rotated_as_complex_numbers(share):
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [0, 0, 7, 8, 9]])
    rope = Rope(rope_theta=100.0, partial_rotary_factor=share)
    half = int(8 * share) // 2
    turned = (x[..., :half] + 1j * x[..., half : 2 * half]) * np.exp(
        1j * positions[..., None, None] * 100.0 ** (-np.arange(half) / half)
    )
    wanted = np.concatenate([turned.real, turned.imag, x[..., 2 * half :]], axis=-1)
    ours = rotate(jnp.asarray(x), *rotation(rope, 8, jnp.asarray(positions), jnp.float32))
    np.testing.assert_allclose(ours, wanted, atol=2e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rope_type": "spiral"}, "rope_type 'spiral' is not one of default, linear"),
        ({"type": "linear"}, "rope_type 'linear' needs factor, which rope_parameters lacks"),
        ({"rope_type": "linear", "factor": 2.0, "mrope_section": [1]}, "has mrope_section, which rope_type 'linear'"),
        ({"rope_type": "default", "mrope_section": [1]}, "has mrope_section, which rope_type 'default'"),
    ],
)
def test_what_is_not_implemented_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        rope_from_hf(given, 64)


def test_older_names_mean_the_same():
    newer = {"rope_type": "longrope", "rope_theta": 9.0, "original_max_position_embeddings": 16, **LONG}
    older = {**newer, "type": "su"}
    del older["rope_type"]
    assert rope_from_hf(older, 64) == rope_from_hf(newer, 64)
    # Fields of a type that was switched off say nothing.
    assert rope_from_hf({"rope_type": "default", "factor": 4.0}, 64) == Rope()


@pytest.mark.parametrize(("name", "longest"), [("dynamic", 128), ("longrope", 32)])
def test_frequencies_that_depend_on_the_length_are_read_up_to_where_they_change(name, longest):
    rope = rope_from_hf(SCALINGS[name], 128)
    rotation(rope, 8, jnp.arange(longest)[None], jnp.float32)
    with pytest.raises(ValueError, match=f"with rope_type '{name}' texts of up to {longest} are read: truncate"):
        rotation(rope, 8, jnp.arange(longest + 1)[None], jnp.float32)


def test_angles_are_computed_in_float32():
    at = jnp.array([[1000, 1001]])
    cos, _ = rotation(Rope(), 8, at, jnp.bfloat16)
    exact = torch.cos(torch.tensor([1000.0, 1001.0])).to(torch.bfloat16).float().numpy()
    assert cos.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(cos[0, :, 0, 0], np.float32), exact)
