"""Comparison of a random model of transformers with ours, read from the folder that it saves."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from llm4rec_jax.models.decoders.decoder import Decoder
from llm4rec_jax.models.encoders.huggingface import load, names_of, parameter_shapes
from llm4rec_jax.trees import flatten

RIGHT = np.arange(13) < np.array([13, 9, 1, 6])[:, None]
"""Mask of texts padded at their ends."""


class Pair(NamedTuple):
    """A model on both sides."""

    folder: Path
    torch: Any
    decoder: Decoder
    params: dict[str, Any]


def make_pair(config: PretrainedConfig, folder: Path, seed: int = 0) -> Pair:
    """Draws a model of transformers, saves it with its head, and loads it here."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms are drawn about what they start from, so that a weight that is left out shows.
            spread = torch.randn_like(parameter)
            parameter.add_(spread * (0.3 if parameter.ndim == 1 else 0.15))
    model.save_pretrained(folder)
    decoder, params = load(folder, language_head=True)
    assert isinstance(decoder, Decoder)
    return Pair(folder, model, decoder, params)


def draw_ids(vocabulary: int, mask: np.ndarray, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, vocabulary, mask.shape) * mask


def torch_states(pair: Pair, ids: np.ndarray, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Normed hidden states and logits of transformers, with positions that count real tokens."""
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    out = pair.torch(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask.astype(int)),
        position_ids=torch.tensor(positions),
        output_hidden_states=True,
    )
    return out.hidden_states[-1], out.logits


def check_states(pair: Pair, mask: np.ndarray, atol: float) -> None:
    """Hidden states and logits of real tokens are transformers'."""
    ids = draw_ids(pair.decoder.config.vocab_size, mask)
    with torch.no_grad():
        states, logits = torch_states(pair, ids, mask)
    variables = {"params": pair.params}
    ours = pair.decoder.apply(variables, ids, mask)
    np.testing.assert_allclose(np.asarray(ours)[mask], states.numpy()[mask], atol=atol, rtol=0)
    scores = pair.decoder.apply(variables, ours, method="logits")
    scale = max(1.0, float(logits.abs().max()))
    np.testing.assert_allclose(np.asarray(scores)[mask] / scale, logits.numpy()[mask] / scale, atol=atol, rtol=0)


def check_gradients(pair: Pair, mask: np.ndarray, rtol: float = 1e-4) -> None:
    """Gradients of every parameter are transformers', relative to the largest of each."""
    ids = draw_ids(pair.decoder.config.vocab_size, mask)
    rng = np.random.default_rng(7)
    config = pair.decoder.config
    toward = rng.normal(size=(*mask.shape, config.hidden_size)).astype(np.float32) * mask[..., None]
    scored = rng.normal(size=(*mask.shape, config.vocab_size)).astype(np.float32) * mask[..., None] * 0.1

    pair.torch.zero_grad()
    states, logits = torch_states(pair, ids, mask)
    ((states * torch.tensor(toward)).mean() + (logits * torch.tensor(scored)).mean()).backward()
    named = {name: p.grad.numpy() for name, p in pair.torch.named_parameters()}
    theirs = names_of(pair.decoder.family).to_params(named, parameter_shapes(pair.decoder))

    @jax.jit
    @jax.grad
    def gradient(params: Any) -> jax.Array:
        states = pair.decoder.apply({"params": params}, ids, mask)
        logits = pair.decoder.apply({"params": params}, states, method="logits")
        return (states * jnp.asarray(toward)).mean() + (logits * jnp.asarray(scored)).mean()

    ours = flatten(gradient(pair.params))
    assert set(ours) == set(theirs)
    for name, grad in theirs.items():
        if name.endswith("key/bias"):
            # It adds the same to all keys of a softmax: its gradient is zero without rotation.
            scale = max(np.abs(theirs[name.replace("key", "query")]).max(), np.abs(grad).max())
        else:
            scale = np.abs(grad).max()
            assert scale > 0, name
        np.testing.assert_allclose(ours[name] / scale, grad / scale, atol=rtol, rtol=0, err_msg=name)
