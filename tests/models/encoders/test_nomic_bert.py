"""NomicBERT against transformers, in its format and in that of the published folders."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, NomicBertModel

from llm4rec_jax.models.encoders.base import find_family
from llm4rec_jax.models.encoders.huggingface import PretrainedError, load, save
from llm4rec_jax.trees import flatten
from tests.models.encoders.parity import LEFT, RIGHT, check

SMALL = {"vocab_size": 41, "num_hidden_layers": 3, "intermediate_size": 29, "max_position_embeddings": 64}
PUBLISHED = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "activation_function": "swiglu",
    "attn_pdrop": 0.0,
    "causal": False,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 64,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "n_embd": 18,
    "n_head": 3,
    "n_inner": 250,
    "n_layer": 3,
    "n_positions": 256,
    "pad_vocab_size_multiple": 8,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "resid_pdrop": 0.0,
    "rotary_emb_base": 700,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "type_vocab_size": 2,
    "use_rms_norm": False,
    "vocab_size": 41,
}
NAMES = {
    "embeddings.LayerNorm": "emb_ln",
    "self_attn.o_proj": "attn.out_proj",
    "mlp.up_proj": "mlp.fc11",
    "mlp.gate_proj": "mlp.fc12",
    "mlp.down_proj": "mlp.fc2",
    "post_attention_layernorm": "norm1",
    "post_mlp_layernorm": "norm2",
}
"""Names of modules in the published folders, by those of transformers."""


def test_parity(tmp_path):
    check("nomic_bert", tmp_path / "a", **SMALL, hidden_size=18, num_attention_heads=3)
    every_switch = {
        "head_dim": 6,
        "type_vocab_size": 3,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-3,
        "pad_token_id": 1,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
    }
    check("nomic_bert", tmp_path / "b", **SMALL, hidden_size=20, num_attention_heads=5, **every_switch)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NomicBertModel]:
    """A folder as nomic-ai publishes them, and transformers' model with its weights."""
    folder = tmp_path_factory.mktemp("nomic")
    torch.manual_seed(0)
    sizes = {**SMALL, "vocab_size": 48, "intermediate_size": 256, "hidden_size": 18, "num_attention_heads": 3}
    config = AutoConfig.for_model("nomic_bert", **sizes, rope_parameters={"rope_type": "default", "rope_theta": 700.0})
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    state = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            state[name] = parameter.add_(torch.randn_like(parameter) * 0.2)
    for i in range(SMALL["num_hidden_layers"]):
        parts = [state.pop(f"layers.{i}.self_attn.{part}_proj.weight") for part in "qkv"]
        state[f"layers.{i}.attn.Wqkv.weight"] = torch.cat(parts)
    tensors = {}
    for name, tensor in state.items():
        name = re.sub("|".join(map(re.escape, NAMES)), lambda found: NAMES[found[0]], name)
        tensors[name.replace("layers.", "encoder.layers.", 1)] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(PUBLISHED))
    return folder, model


@pytest.mark.parametrize("mask", [RIGHT, LEFT])
def test_a_published_folder(published, mask):
    folder, model = published
    encoder, params = load(folder)
    ids = np.random.default_rng(1).integers(3, 41, mask.shape) * mask
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask.astype(int))}
        want = model(**inputs).last_hidden_state.numpy()
    ours = np.asarray(jax.jit(encoder.apply)({"params": params}, ids, mask))
    np.testing.assert_allclose(ours[mask], want[mask], atol=1e-5, rtol=0)


def test_transformers_reads_the_tensors_of_a_published_folder_alike(published, tmp_path):
    """It knows their names, though not the keys of the configuration."""
    folder, model = published
    model.config.save_pretrained(tmp_path)
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_published_folder_is_written_as_transformers_reads_it(published, tmp_path):
    folder, model = published
    encoder, params = load(folder)
    theirs, report = AutoModel.from_pretrained(save(tmp_path, encoder, params), output_loading_info=True)
    assert not any(report.values()), report
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], tensor, rtol=0, atol=0)
    again, same = load(tmp_path)
    assert again.config == encoder.config
    jax.tree.map(np.testing.assert_array_equal, params, same)


def test_a_published_folder_is_read_strictly(published, tmp_path):
    folder, _ = published
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))

    def edited(change) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    edited(lambda tensors: tensors.pop("encoder.layers.1.attn.Wqkv.weight"))
    with pytest.raises(PretrainedError, match=r"missing: layers\.1\.self_attn\.k_proj\.weight"):
        load(tmp_path)
    edited(lambda tensors: tensors.update({"encoder.layers.0.mlp.router.weight": torch.zeros(2)}))
    with pytest.raises(
        PretrainedError, match=r"no rule knows what to do with: encoder\.layers\.0\.mlp\.router\.weight"
    ):
        load(tmp_path)
    edited(lambda tensors: tensors.update({"layers.0.self_attn.q_proj.weight": torch.zeros(18, 18)}))
    with pytest.raises(PretrainedError, match=r"both stand for layer_0/attention/query/kernel"):
        load(tmp_path)


def test_a_model_of_masked_tokens(published, tmp_path):
    """The prefix of its encoder and its head are left out."""
    folder, _ = published
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    head = {"cls.predictions.decoder.weight": torch.zeros(48, 18)}
    save_file({**tensors, **head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path)[1], load(folder)[1])


def test_longer_texts_turn_slower():
    """A published scaling factor is transformers' dynamic RoPE, here at the frequencies of texts as in training."""
    config = find_family("nomic_bert").config_from_hf({**PUBLISHED, "rotary_scaling_factor": 2})
    assert (config.rope.rope_type, config.rope.factor, config.rope.longest) == ("dynamic", 2, 64)


def test_token_types(published):
    encoder, params = load(published[0])
    ids = np.arange(3, 9)[None]
    types = (ids > 5).astype(int)
    with torch.no_grad():
        want = published[1](torch.tensor(ids), token_type_ids=torch.tensor(types)).last_hidden_state.numpy()
    ours = jax.jit(encoder.apply)({"params": params}, ids, np.ones_like(ids), types)
    np.testing.assert_allclose(ours, want, atol=1e-5, rtol=0)
    assert set(flatten(params)) >= {"embeddings/token_type/embedding", "embeddings/norm/scale"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 8, "activation_function": "gelu"}, "num_experts is 8, but only 0 is supported"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu', but only 'swiglu'"),
        ({"qkv_proj_bias": True}, "qkv_proj_bias is True, but only False"),
        ({"rotary_emb_fraction": 0.5}, "rotary_emb_fraction is 0.5, but only 1.0"),
        ({"rotary_emb_scale_base": 512}, "rotary_emb_scale_base is 512, but only None"),
        ({"prenorm": True}, "prenorm is True, but only False"),
        ({"causal": True}, "causal is True, but only False"),
        ({"n_inner": None}, "n_inner is missing"),
    ],
)
def test_unsupported(fields, message):
    with pytest.raises(ValueError, match=message):
        find_family("nomic_bert").config_from_hf({**PUBLISHED, **fields})


def test_what_a_published_config_leaves_out_is_what_its_code_does():
    """Without a word of them, linear layers have biases."""
    raw = {name: value for name, value in PUBLISHED.items() if name != "qkv_proj_bias"}
    with pytest.raises(ValueError, match="qkv_proj_bias is True"):
        find_family("nomic_bert").config_from_hf(raw)
