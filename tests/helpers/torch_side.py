"""Common parts of tests against torch: one batch, a method's run on either side, and the largest difference."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf
import torch

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.bert import BERT, Bert
from llm4rec_jax.peft import Delta, Peft, forward
from llm4rec_jax.trees import flatten
from tests.conftest import random_bert

NAMES = pretrained.names_of(BERT)
"""Torch's names of our parameters."""

D, N, LENGTH = 24, 3, 7
MASK = np.arange(LENGTH) < np.array([7, 4, 1])[:, None]
# Id 0 is padding and nothing else: torch gives its embedding no gradient.
IDS = np.random.default_rng(0).integers(1, 97, MASK.shape) * MASK
WEIGHTS = np.random.default_rng(1).normal(size=(*MASK.shape, D)).astype(np.float32) * MASK[..., None]

Ours = tuple[Bert, dict[str, Any]]
Tensors = dict[str, dict[str, torch.Tensor]]
Layout = Mapping[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]]
"""By our name of an array: what follows the module's name in peft's, and what brings theirs to our shape."""

LORA: Layout = {"a": ("lora_A.default.weight", torch.t), "b": ("lora_B.default.weight", torch.t)}
ADALORA: Layout = {
    "p": ("lora_A.default", torch.t),
    "lambda": ("lora_E.default", torch.flatten),
    "q": ("lora_B.default", torch.t),
}


def run_ours(ours: Ours, method: Peft, delta: Delta) -> tuple[np.ndarray, Delta]:
    """States and the delta's gradients of the weighted sum of states."""
    encoder, params = ours

    def loss(delta):
        states = forward(encoder, method, params, delta, IDS, MASK)
        return (states * WEIGHTS).sum(), states

    grads, states = jax.grad(loss, has_aux=True)(delta)
    return np.asarray(states), grads


def run_torch(model: torch.nn.Module, prompt: int = 0) -> np.ndarray:
    """States; gradients are left on the parameters.

    `prompt` is how many states it puts in front, which are left out.
    """
    states = model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK).long()).last_hidden_state
    assert states.shape == (*IDS.shape[:1], prompt + LENGTH, D)
    states = states[:, prompt:]
    (states * torch.tensor(WEIGHTS)).sum().backward()
    return states.detach().numpy()


def adapted(config: hf.PeftConfig, **bert: int) -> hf.PeftModel:
    """The random BERT, changed by `bert`, with peft's method on it, in eval mode."""
    config.task_type = "FEATURE_EXTRACTION"
    with warnings.catch_warnings():
        # peft looks for a width in and a width out, which a layer norm has not.
        warnings.filterwarnings("ignore", "Unsupported layer type .*LayerNorm", UserWarning)
        return hf.get_peft_model(random_bert(**bert), config).eval()


def randomise(model: torch.nn.Module, around: Mapping[str, float] | None = None) -> None:
    """Trainable arrays drawn from N(mean, 0.2²); the mean is 0, or that of the part of a name in `around`."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.normal_(next((mean for part, mean in (around or {}).items() if part in name), 0.0), 0.2)


def array(tensor: torch.Tensor) -> jax.Array:
    """A copy, which does not follow when torch changes the tensor in place."""
    return jnp.array(tensor.detach().numpy())


def tensors(model: torch.nn.Module, start: Delta, layout: Layout, grad: bool = False) -> Tensors:
    """All that peft trains, or its gradients, in the form of the delta `start`."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def one(site: str, name: str) -> torch.Tensor:
        suffix, ours = layout[name]
        p = trained.pop(f"base_model.model.{NAMES.module(site)}.{suffix}")
        return ours((p.grad if grad else p).detach())

    found = {site: {name: one(site, name) for name in arrays} for site, arrays in start.items()}
    assert not trained
    assert jax.tree.map(np.shape, start) == {s: {n: tuple(t.shape) for n, t in own.items()} for s, own in found.items()}
    return found


def assert_grads(grads: Delta, want: Tensors) -> None:
    """Each array to 1e-4 of its largest value, or of a hundredth of the largest of all, if that is more."""
    assert {s: set(g) for s, g in grads.items()} == {s: set(g) for s, g in want.items()}
    floor = 1e-2 * max(float(t.abs().max()) for g in want.values() for t in g.values())
    assert floor > 0
    for site, own in want.items():
        for name, tensor in own.items():
            scale = max(float(tensor.abs().max()), floor)
            assert np.abs(grads[site][name] - tensor.numpy()).max() <= 1e-4 * scale, (site, name)


def assert_states(states: np.ndarray, want: np.ndarray, plain_ours: Ours) -> None:
    """Equal where there is text, and not those of the encoder without the method."""
    np.testing.assert_allclose(states[MASK], want[MASK], rtol=0, atol=1e-5)
    encoder, params = plain_ours
    assert np.abs(states - encoder.apply({"params": params}, IDS, MASK))[MASK].max() > 0.05


def assert_merged(merged: dict[str, Any], model: hf.PeftModel) -> None:
    """Every parameter is that of the model into which peft has merged its method."""
    theirs = dict(model.merge_and_unload().named_parameters())
    flat = flatten(merged)
    assert len(flat) == len(theirs)
    for path, a in flat.items():
        want = theirs[NAMES.tensor(path)].detach().numpy()
        np.testing.assert_allclose(a, want.T if path.endswith("/kernel") else want, rtol=0, atol=1e-6, err_msg=path)
