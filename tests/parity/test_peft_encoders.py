"""Adapters of encoders to and from Hugging Face's peft, with peft's own default target modules."""

import copy
from typing import Any

import jax
import numpy as np
import peft as hf
import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.base import find_family
from llm4rec_jax.peft import create, forward
from llm4rec_jax.peft.hf.save_load import InterchangeError, load, save
from tests.helpers.small import moved

MASK = np.arange(7) < np.array([7, 4, 1])[:, None]
IDS = np.random.default_rng(0).integers(3, 41, MASK.shape) * MASK
T5 = {"vocab_size": 41, "d_model": 24, "num_layers": 2, "num_heads": 3, "d_kv": 10, "d_ff": 29}
FAMILIES: dict[str, dict[str, Any]] = {
    "t5": T5,
    "t5_v1_1": {**T5, "feed_forward_proj": "gated-gelu"},
    "deberta-v2": {
        "vocab_size": 41, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 29,
        "max_position_embeddings": 32, "relative_attention": True, "pos_att_type": "c2p|p2c", "position_buckets": 8,
        "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False, "conv_kernel_size": 3,
    },
}  # fmt: skip
"""Fields of small models by family."""
CONFIGS = {
    "lora": hf.LoraConfig(r=2, lora_alpha=3, task_type="FEATURE_EXTRACTION"),
    "ia3": hf.IA3Config(task_type="FEATURE_EXTRACTION"),
    "prompt": hf.PromptTuningConfig(num_virtual_tokens=3, task_type="FEATURE_EXTRACTION"),
}


def reopened(kind: str, folder) -> Any:
    """A bare encoder of transformers."""
    cls = transformers.T5EncoderModel if kind.startswith("t5") else transformers.AutoModel
    return cls.from_pretrained(folder).eval()


def draw(kind: str, folder) -> Any:
    torch.manual_seed(0)
    fields = FAMILIES[kind]
    config = CONFIG_MAPPING["t5" if kind.startswith("t5") else kind](**fields)
    model = (transformers.T5EncoderModel if kind.startswith("t5") else transformers.AutoModel.from_config)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder)
    return model.eval()


def torch_states(model) -> np.ndarray:
    with torch.no_grad():
        out = model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK).long())
    return out.last_hidden_state.numpy()[:, -IDS.shape[1] :][MASK]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_default_adapters(tmp_path, kind, name):
    base = draw(kind, tmp_path / "base")
    encoder, params = pretrained.load(tmp_path / "base")
    model = hf.get_peft_model(base, copy.deepcopy(CONFIGS[name])).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(0.0, 0.2)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load(tmp_path / "adapter", params)
    if name == "lora":
        assert {site.rpartition("/")[2] for site in loaded.delta} == {"query", "value"}
        # Without the encoder's parameters, the names of the arrays tell the family.
        bare = load(tmp_path / "adapter")
        jax.tree.map(np.testing.assert_array_equal, bare.delta, loaded.delta)
    ours = np.asarray(forward(encoder, loaded.method, params, loaded.delta, IDS, MASK))[MASK]
    np.testing.assert_allclose(ours, torch_states(model), rtol=0, atol=2e-5)
    save(tmp_path / "back", loaded.method, loaded.delta, params)
    again = hf.PeftModel.from_pretrained(reopened(kind, tmp_path / "base"), str(tmp_path / "back")).eval()
    np.testing.assert_allclose(ours, torch_states(again), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if not find_family(kind).past_keys])
def test_a_prefix_that_transformers_ignores_is_not_written(tmp_path, kind):
    draw(kind, tmp_path / "base")
    _, params = pretrained.load(tmp_path / "base")
    method = create("prefix", {"prefix": {"length": 3}})
    delta = moved(method.init(jax.random.key(0), params), 1)
    with pytest.raises(InterchangeError, match=f"transformers' {kind} attends to no keys before its own"):
        save(tmp_path / "adapter", method, delta, params)
