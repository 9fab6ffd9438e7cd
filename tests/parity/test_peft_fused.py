"""LoRA on modules that hold several projections, to and from Hugging Face peft, trained on either side."""

import jax
import numpy as np
import optax
import peft as hf
import pytest
import torch
import transformers

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.peft import forward
from llm4rec_jax.peft.hf.save_load import load, save
from tests.parity.test_peft_decoders import IDS, MASK, draw, torch_states

TOWARD = np.random.default_rng(5).normal(size=(*MASK.shape, 24)).astype(np.float32) * MASK[..., None]
FUSED = {"gpt2": None, "phi3": ["qkv_proj", "gate_up_proj", "down_proj"]}
"""Target modules, of which None are peft's own for the family."""


def states(encoder, params, method, delta) -> np.ndarray:
    return np.asarray(jax.jit(lambda d: forward(encoder, method, params, d, IDS, MASK))(delta))[MASK]


def trained(encoder, params, method, delta):
    """The delta after three steps of Adam."""
    tx = optax.adam(0.02)

    @jax.jit
    @jax.grad
    def slope(delta):
        return (forward(encoder, method, params, delta, IDS, MASK) * TOWARD).mean()

    state = tx.init(delta)
    for _ in range(3):
        updates, state = tx.update(slope(delta), state)
        delta = optax.apply_updates(delta, updates)
    return delta


def train_theirs(model) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.02)
    inputs = {"input_ids": torch.tensor(IDS), "attention_mask": torch.tensor(MASK).long()}
    for _ in range(3):
        optimizer.zero_grad()
        (model(**inputs, output_hidden_states=True).hidden_states[-1] * torch.tensor(TOWARD)).mean().backward()
        optimizer.step()


def opened(base, adapter, trainable: bool = False):
    bare = transformers.AutoModel.from_pretrained(base)
    return hf.PeftModel.from_pretrained(bare, str(adapter), is_trainable=trainable).eval()


def by_module(folder) -> dict[str, torch.Tensor]:
    """Arrays of an adapter by the names of the model without its head."""
    tensors = hf.load_peft_weights(str(folder))
    return {name.replace(".model.model.", ".model.").replace(".transformer.", "."): t for name, t in tensors.items()}


@pytest.mark.parametrize("kind", sorted(FUSED))
def test_an_adapter_that_both_sides_train(tmp_path, kind):
    """Parts share the A of the whole. Trained here they have one each, and peft gets a block each."""
    base = draw(kind, tmp_path / "base")
    encoder, params = pretrained.load(tmp_path / "base")
    options = {"r": 2, "lora_alpha": 3, "target_modules": FUSED[kind]}
    options["fan_in_fan_out"] = kind == "gpt2"
    model = hf.get_peft_model(base, hf.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.2)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs", params, family=encoder.family)
    ours = states(encoder, params, loaded.method, loaded.delta)
    np.testing.assert_allclose(ours, torch_states(model), rtol=0, atol=2e-5)

    # Back as it was.
    save(tmp_path / "back", loaded.method, loaded.delta, params, family=encoder.family)
    there, back = by_module(tmp_path / "theirs"), by_module(tmp_path / "back")
    assert there.keys() == back.keys()
    for name, tensor in there.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)

    delta = trained(encoder, params, loaded.method, loaded.delta)
    save(tmp_path / "trained", loaded.method, delta, params, family=encoder.family)
    theirs = opened(tmp_path / "base", tmp_path / "trained", trainable=True)
    assert theirs.peft_config["default"].r == 6
    ours = states(encoder, params, loaded.method, delta)
    np.testing.assert_allclose(ours, torch_states(theirs), rtol=0, atol=2e-5)

    train_theirs(theirs)
    theirs.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", params, family=encoder.family)
    at_last = states(encoder, params, again.method, again.delta)
    np.testing.assert_allclose(at_last, torch_states(theirs), rtol=0, atol=2e-5)
    assert np.abs(at_last - ours).max() > 1e-2
