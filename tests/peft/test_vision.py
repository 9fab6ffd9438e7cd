"""Methods over vision encoders: they start at the pretrained function, and gradients reach all that they train."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.models.vision.base import vision_families
from llm4rec_jax.peft import METHODS, create, forward
from tests.helpers.small import moved, named
from tests.peft.test_families import OPTIONS

PIXELS = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 8,
    "patch_size": 4, "projection_dim": 12, "pooler_output_size": 32, "mlp_ratio": 1.5,
}  # fmt: skip
FAMILIES = ("vit", "dinov2", "dinov2_swiglu", "clip_vision_model", "siglip_vision_model")
SHORT = {("dinov2", name) for name in ("lora", "houlsby", "side", "full")} | {("siglip_vision_model", "lora")}


@cache
def model(name: str):
    family = vision_families()[name]
    raw = {**SMALL, "model_type": name, "use_swiglu_ffn": name == "dinov2_swiglu"}
    encoder = family.build(family.config_from_hf(raw))
    shapes = jax.eval_shape(partial(encoder.init, method="vectors"), jax.random.key(0), PIXELS)["params"]
    rng = np.random.default_rng(0)
    return encoder, jax.tree.map(lambda a: jnp.asarray(rng.normal(0.0, 0.2, a.shape), a.dtype), shapes)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(family, name, marks=() if (family, name) in SHORT else pytest.mark.long)
        for family in FAMILIES
        for name in sorted(set(METHODS) - {"prompt"})
    ],
)
def test_method(family, name):
    encoder, params = model(family)
    method = create(name, {name: OPTIONS.get(name, {})})
    start = method.init(jax.random.key(0), params)
    base = encoder.apply({"params": params}, PIXELS, method="vectors")
    toward = np.random.default_rng(1).normal(size=base.shape).astype(np.float32)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(delta):
        vectors = forward(encoder, method, params, delta, PIXELS, apply="vectors")
        return (vectors * toward).sum() + method.penalty(delta), vectors

    if name != "prefix":
        (_, vectors), _ = loss(start)
        np.testing.assert_allclose(vectors, base, rtol=0, atol=1e-4 * np.abs(base).max())
    delta = moved(start, 1)
    (_, vectors), grads = loss(delta)
    for path, grad in named(grads).items():
        # A bias of keys moves all scores alike.
        assert np.isfinite(grad).all(), path
        assert path.endswith("key/bias") or np.abs(grad).max() > 0, path
    if start:
        assert np.abs(vectors - base).max() > 1e-3 * np.abs(base).max()
    if method.merge is not None:
        merged = encoder.apply({"params": method.merge(params, delta)}, PIXELS, method="vectors")
        np.testing.assert_allclose(merged, vectors, rtol=0, atol=1e-4 * np.abs(vectors).max())


def test_prompts_are_for_texts():
    with pytest.raises(ValueError, match="only an encoder of tokens can be given one"):
        create("prompt").init(jax.random.key(0), model("vit")[1])
