"""Comparison of a random encoder of transformers with ours, read from the folder that it saves."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoConfig, AutoModel

from llm4rec_jax.models.encoders.base import first_layers
from llm4rec_jax.models.encoders.huggingface import load, names_of, parameter_shapes, save
from llm4rec_jax.sharding import make_mesh, specs
from llm4rec_jax.trees import flatten

RIGHT = np.arange(13) < np.array([13, 9, 1, 6])[:, None]
"""Mask of texts padded at their ends."""
LEFT = RIGHT[:, ::-1]
"""Mask of texts padded at their beginnings."""


def check(
    model_type: str,
    folder: Path,
    *,
    kind: Any = AutoModel,
    masks: Any = (RIGHT, LEFT),
    atol: float = 1e-5,
    **fields: Any,
) -> None:
    """A random model of transformers has our states, gradients and folders."""
    config = AutoConfig.for_model(model_type, **fields)
    torch.manual_seed(0)
    if kind is AutoModel:
        model = kind.from_config(config, attn_implementation="eager").eval()
    else:
        model = kind._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms are drawn about what they start from, so that a weight that is left out shows.
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.15))
    model.save_pretrained(folder / "theirs")
    encoder, params = load(folder / "theirs")
    apply = jax.jit(lambda params, ids, mask: encoder.apply({"params": params}, ids, mask))
    pad = encoder.config.pad_token_id
    for mask in masks:
        ids = np.where(mask, np.random.default_rng(1).integers(3, encoder.config.vocab_size, mask.shape), pad)
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask.astype(int))}
        want = model(**inputs).last_hidden_state
        ours = apply(params, ids, mask)
        np.testing.assert_allclose(np.asarray(ours)[mask], want.detach().numpy()[mask], atol=atol, rtol=0)
    _check_gradients(model, encoder, params, inputs, ids, mask)

    save(folder / "ours", encoder, params)
    again, _ = kind.from_pretrained(folder / "ours", attn_implementation="eager", output_loading_info=True)
    with torch.no_grad():
        states = again.eval()(**inputs).last_hidden_state.numpy()
    np.testing.assert_allclose(states[mask], want.detach().numpy()[mask], atol=atol, rtol=0)
    read, same = load(folder / "ours")
    assert read.config == encoder.config
    jax.tree.map(np.testing.assert_array_equal, params, same)
    theirs = json.loads((folder / "theirs" / "config.json").read_text(encoding="utf-8"))
    written = json.loads((folder / "ours" / "config.json").read_text(encoding="utf-8"))
    assert {n: v for n, v in written.items() if n in theirs and v != theirs[n]} == {}

    placed = flatten(specs({"encoder": params}, make_mesh(1), encoder.family.sharding_rules))
    for site in encoder.family.sites.linear.values():
        assert any(placed[f"encoder/layer_1/{site}/kernel"]), site

    pruned, kept = first_layers(encoder, params, 1)

    @jax.jit
    def in_parts(params: Any, kept: Any) -> Any:
        states = encoder.apply({"params": params}, ids, mask, method="all_hidden_states")
        first = encoder.apply({"params": params}, None, states[:, :, :2], mask, method="encode_from")
        half = encoder.apply({"params": params}, ids, mask, 1, method="hidden_states")
        whole = encoder.apply({"params": params}, 1, half, mask, method="encode_from")
        return first, pruned.apply({"params": kept}, ids, mask), whole

    first, alone, whole = (np.asarray(states)[mask] for states in in_parts(params, kept))
    np.testing.assert_allclose(alone, first, atol=atol, rtol=0)
    np.testing.assert_allclose(whole, np.asarray(ours)[mask], atol=atol, rtol=0)


def _check_gradients(model: Any, encoder: Any, params: Any, inputs: Any, ids: np.ndarray, mask: np.ndarray) -> None:
    toward = np.random.default_rng(7).normal(size=(*mask.shape, encoder.config.hidden_size)).astype(np.float32)
    toward *= mask[..., None]
    model.zero_grad()
    (model(**inputs).last_hidden_state * torch.tensor(toward)).mean().backward()
    unused = encoder.family.unused_modules
    named = {n: p.grad.numpy() for n, p in model.named_parameters() if not n.startswith(unused or ("\0",))}
    theirs = names_of(encoder.family).to_params(named, parameter_shapes(encoder))

    @jax.jit
    @jax.grad
    def gradient(params: Any) -> jax.Array:
        return (encoder.apply({"params": params}, ids, mask) * jnp.asarray(toward)).mean()

    ours = flatten(gradient(params))
    assert set(ours) == set(theirs)
    for name, grad in theirs.items():
        if name == "embeddings/word/embedding" and encoder.config.pad_token_id is not None:
            # torch's tables have no gradient at padding; nor has ours, where padding reaches no state.
            assert np.abs(np.asarray(ours[name])[encoder.config.pad_token_id]).max() < 1e-6
        scale = np.abs(grad).max()
        if name.endswith("key/bias"):
            # It adds the same to all keys of a softmax: its gradient is zero without rotation.
            beside = f"{name.partition('/')[0]}/attention/query/bias"
            scale = max(np.abs(theirs[beside]).max(), scale)
        assert scale > 0, name
        np.testing.assert_allclose(ours[name] / scale, grad / scale, atol=1e-4, rtol=0, err_msg=name)
