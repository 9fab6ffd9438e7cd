"""Adapters of decoders to and from Hugging Face's peft, with peft's own default target modules."""

import jax
import numpy as np
import peft as hf
import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.peft import create, forward
from llm4rec_jax.peft.hf.save_load import load, save
from tests.helpers.small import moved

MASK = np.arange(7) < np.array([7, 4, 1])[:, None]
IDS = np.random.default_rng(0).integers(3, 41, MASK.shape) * MASK
SMALL = {
    "vocab_size": 41, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 4, "intermediate_size": 29, "max_position_embeddings": 64, "ffn_dim": 29, "word_embed_proj_dim": 24,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def draw(kind: str, folder):
    """A random model with its head, saved."""
    torch.manual_seed(0)
    shared = {name: size for name, size in SMALL.items() if name not in ("num_key_value_heads", "head_dim")}
    fields = shared if kind in ("gpt2", "opt") else SMALL
    model = transformers.AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields)).eval()
    model.save_pretrained(folder)
    return model


def torch_states(model, **inputs) -> np.ndarray:
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK).long(), output_hidden_states=True, **inputs
        )
    return out.hidden_states[-1].numpy()[MASK]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma", "opt"])
def test_lora_of_a_causal_model(tmp_path, kind):
    base = draw(kind, tmp_path / "base")
    encoder, params = pretrained.load(tmp_path / "base")
    model = hf.get_peft_model(base, hf.LoraConfig(r=2, lora_alpha=3, task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(0.0, 0.2)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load(tmp_path / "adapter", params, family=encoder.family)
    targets = {site.rpartition("/")[2] for site in loaded.delta}
    assert targets == {"query", "value"}
    ours = np.asarray(forward(encoder, loaded.method, params, loaded.delta, IDS, MASK))[MASK]
    np.testing.assert_allclose(ours, torch_states(model), rtol=0, atol=2e-5)
    # And back, over the model without its head.
    save(tmp_path / "back", loaded.method, loaded.delta, params, family=encoder.family)
    bare = transformers.AutoModel.from_pretrained(tmp_path / "base")
    again = hf.PeftModel.from_pretrained(bare, str(tmp_path / "back")).eval()
    np.testing.assert_allclose(ours, torch_states(again), rtol=0, atol=2e-5)


def test_a_prefix_with_shared_keys(tmp_path):
    """Two heads of keys serve six of queries, so a prefix is as wide as two heads."""
    draw("llama", tmp_path / "base")
    encoder, params = pretrained.load(tmp_path / "base")
    method = create("prefix", {"prefix": {"length": 3}})
    delta = moved(method.init(jax.random.key(0), params), 1)
    assert delta["layer_0/attention"]["key"].shape == (3, 8)
    save(tmp_path / "adapter", method, delta, params, family=encoder.family)
    bare = transformers.AutoModel.from_pretrained(tmp_path / "base")
    model = hf.PeftModel.from_pretrained(bare, str(tmp_path / "adapter")).eval()
    ours = np.asarray(forward(encoder, method, params, delta, IDS, MASK))[MASK]
    np.testing.assert_allclose(ours, torch_states(model), rtol=0, atol=2e-5)
    loaded = load(tmp_path / "adapter", params, family=encoder.family)
    jax.tree.map(np.testing.assert_array_equal, loaded.delta, delta)
