"""Vision encoders beside those of transformers: states, vectors and gradients."""

import json

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.models.encoders.checkpoint import PretrainedError
from llm4rec_jax.models.encoders.clip_text import CLIP_TEXT
from llm4rec_jax.models.vision.encoder import bicubic_weights
from llm4rec_jax.models.vision.pretrained import load
from llm4rec_jax.trees import flatten
from tests.models.vision.parity import MODELS, PIXELS, TEXT, made, outputs


@pytest.mark.parametrize("name", MODELS)
def test_states_vectors_and_gradients_are_those_of_transformers(name, tmp_path):
    model = made(name, tmp_path / "model")
    encoder, params = load(tmp_path / "model")
    want_states, want_vectors = outputs(name, model, PIXELS)
    states = jax.jit(lambda p: encoder.apply({"params": p}, PIXELS))(params)
    np.testing.assert_allclose(states, want_states.detach(), atol=1e-5, rtol=0)
    toward = np.random.default_rng(7).normal(size=want_vectors.shape).astype(np.float32)

    @jax.jit
    def loss(params):
        vectors = encoder.apply({"params": params}, PIXELS, method="vectors")
        return (vectors * toward).sum(), vectors

    grads, vectors = jax.grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(vectors, want_vectors.detach(), atol=1e-5, rtol=0)

    (want_vectors * torch.tensor(toward)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    # Gradients are read as weights are, by the names of the folder.
    model.save_pretrained(tmp_path / "gradients")
    want = flatten(load(tmp_path / "gradients")[1])
    largest = max(float(np.abs(array).max()) for array in want.values())
    for path, array in flatten(grads).items():
        # A bias of keys adds the same to all scores of a softmax: its gradient is zero, and the query's has its scale.
        beside = path.replace("key/bias", "query/bias")
        scale = max(float(np.abs(want[path]).max()), float(np.abs(want[beside]).max()), 1e-3 * largest)
        np.testing.assert_allclose(array / scale, want[path] / scale, atol=1e-4, rtol=0, err_msg=path)


def test_positions_of_other_sizes_are_interpolated(tmp_path):
    model = made("dinov2", tmp_path)
    encoder, params = load(tmp_path)
    pixels = np.random.default_rng(1).normal(size=(2, 22, 8, 3)).astype(np.float32)
    want, _ = outputs("dinov2", model, pixels)
    np.testing.assert_allclose(encoder.apply({"params": params}, pixels), want.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("old", "new"), [(5, 9), (7, 3), (4, 4), (1, 2)])
def test_interpolation_is_that_of_torch(old, new):
    values = np.random.default_rng(0).normal(size=(1, 2, old, old)).astype(np.float32)
    want = torch.nn.functional.interpolate(torch.tensor(values), size=(new, new), mode="bicubic", align_corners=False)
    weights = bicubic_weights(old, new)
    np.testing.assert_allclose(weights @ values @ weights.T, want, atol=1e-5, rtol=0)


def test_a_head_may_be_left_out(tmp_path):
    model = made("clip", tmp_path)
    encoder, params = load(tmp_path, head=False)
    assert "head" not in params
    images = torch.tensor(PIXELS.transpose(0, 3, 1, 2))
    want = model.vision_model(images).pooler_output.detach()
    np.testing.assert_allclose(encoder.apply({"params": params}, PIXELS, method="vectors"), want, atol=1e-5, rtol=0)


def test_the_text_tower_of_clip_is_a_language_model(tmp_path):
    model = made("clip", tmp_path / "both")
    encoder, params = huggingface.load(tmp_path / "both")
    assert encoder.family is CLIP_TEXT
    mask = np.arange(9) < np.array([9, 4, 6])[:, None]
    ids = np.random.default_rng(0).integers(2, 39, mask.shape)
    ids[np.arange(3), mask.sum(1) - 1] = TEXT["eos_token_id"]
    ids = np.where(mask, ids, TEXT["pad_token_id"])
    want = model.text_model(torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)))
    states = np.asarray(encoder.apply({"params": params}, ids, mask))
    np.testing.assert_allclose(states[mask], want.last_hidden_state.detach().numpy()[mask], atol=1e-5, rtol=0)
    # Its pooled vector is the state of the last token that is no padding.
    last = states[np.arange(3), mask.sum(1) - 1]
    np.testing.assert_allclose(last, want.pooler_output.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 40}, "image_size 13 is less than patch_size 40"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not one of"),
        ({"image_size": [13, 13]}, "image_size is .* must be of type int"),
        ({"model_type": "vitt"}, "did you mean 'vit'"),
        ({"hidden_size": 12}, r"is \(.*\), but config.json makes it"),
        ({"num_hidden_layers": 3}, r"tensors that the encoder needs are missing: encoder.layer.2"),
        ({"num_hidden_layers": 1}, r"tensors beyond what config.json describes: encoder.layer.1"),
    ],
)
def test_a_folder_that_is_not_what_it_claims_is_refused(fields, message, tmp_path):
    made("vit", tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(PretrainedError, match=message) as caught:
        load(tmp_path)
    assert tmp_path.name in str(caught.value)


def test_a_tensor_without_a_rule_and_a_missing_head_are_refused(tmp_path):
    made("vit without a pooler", tmp_path)
    with pytest.raises(PretrainedError, match=r"missing: pooler\.dense\.bias"):
        load(tmp_path, head=True)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "vit.register_tokens": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(PretrainedError, match=r"no rule knows what to do with: vit\.register_tokens"):
        load(tmp_path)


def test_images_of_another_form_are_refused(tmp_path):
    made("vit", tmp_path)
    encoder, params = load(tmp_path)
    with pytest.raises(ValueError, match=r"give \[B, H, W, 3\]"):
        encoder.apply({"params": params}, PIXELS.transpose(0, 3, 1, 2))
