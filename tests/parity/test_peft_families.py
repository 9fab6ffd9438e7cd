"""Adapters of modules that hold several projections, and of encoders with rotary positions, to and from peft."""

import json

import jax
import numpy as np
import peft as hf
import pytest
import torch
import transformers
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.base import find_family
from llm4rec_jax.peft import create, forward
from llm4rec_jax.peft.hf.save_load import InterchangeError, load, save
from tests.helpers.small import moved

MASK = np.arange(7) < np.array([7, 4, 1])[:, None]
IDS = np.random.default_rng(0).integers(3, 41, MASK.shape) * MASK
SMALL = {
    "vocab_size": 41, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 29,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MORE = {"phi3": {"num_key_value_heads": 2}, "modernbert": {"local_attention": 4}, "gpt2": {}, "nomic_bert": {}}
MODULES = {
    "gpt2": None,  # peft's default: c_attn
    "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
    "modernbert": ["Wqkv", "Wi", "Wo"],
    "nomic_bert": ["q_proj", "v_proj", "up_proj"],
}


@pytest.fixture(scope="module", params=MODULES)
def base(request, tmp_path_factory):
    """A random model of transformers in a folder, and ours."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = CONFIG_MAPPING[request.param](**SMALL, **MORE[request.param])
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return request.param, folder, *pretrained.load(folder)


def torch_states(model) -> np.ndarray:
    with torch.no_grad():
        out = model.eval()(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK).long())
    return out.last_hidden_state.numpy()[MASK]


def states(encoder, method, params, delta) -> np.ndarray:
    return np.asarray(jax.jit(lambda delta: forward(encoder, method, params, delta, IDS, MASK))(delta))[MASK]


def opened(folder, adapter) -> np.ndarray:
    bare = transformers.AutoModel.from_pretrained(folder)
    return torch_states(hf.PeftModel.from_pretrained(bare, str(adapter)))


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_adapters_of_peft(base, tmp_path, options):
    kind, folder, encoder, params = base
    options = {**options, "fan_in_fan_out": kind == "gpt2", "target_modules": MODULES[kind]}
    model = hf.get_peft_model(
        transformers.AutoModel.from_pretrained(folder), hf.LoraConfig(r=2, lora_alpha=3, **options)
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(p.abs() + 0.1 if "magnitude" in name else torch.randn_like(p) * 0.2)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs", params, family=encoder.family)
    want = torch_states(model)
    np.testing.assert_allclose(states(encoder, loaded.method, params, loaded.delta), want, rtol=0, atol=2e-5)
    # Projections that still share their A are written as they were.
    save(tmp_path / "back", loaded.method, loaded.delta, params, family=encoder.family)
    assert json.loads((tmp_path / "back" / "adapter_config.json").read_text())["r"] == 2
    np.testing.assert_allclose(opened(folder, tmp_path / "back"), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_adapters_of_ours(base, tmp_path, rslora):
    """In a fused module, query and value have an A each, and key none; all of them fit in twice the rank."""
    kind, folder, encoder, params = base
    method = create("lora", {"lora": {"rank": 2, "alpha": 3.0, "rslora": rslora, "target": r".*/(query|value|output)"}})
    delta = moved(method.init(jax.random.key(0), params), 1)
    save(tmp_path, method, delta, params, family=encoder.family)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == (2 if kind == "nomic_bert" else 4)
    want = states(encoder, method, params, delta)
    np.testing.assert_allclose(opened(folder, tmp_path), want, rtol=0, atol=2e-5)
    loaded = load(tmp_path, params, family=encoder.family)
    np.testing.assert_allclose(states(encoder, loaded.method, params, loaded.delta), want, rtol=0, atol=2e-5)


def test_other_adapters_of_ours(base, tmp_path):
    kind, folder, encoder, params = base
    fused = kind != "nomic_bert"
    whole = r"layer_\d+/attention/(query|key|value)"
    for name, target, refused in (
        ("dora", whole, False),
        ("dora", r".*/value", fused),
        ("ia3", r".*/(key|down)", fused),
        ("vera", r".*/query", fused),
    ):
        method = create(name, {name: {"target": target}})
        delta = moved(method.init(jax.random.key(0), params), 1)
        if refused:
            with pytest.raises(InterchangeError, match=r"peft adapts .* only as a whole, .* with `merge`"):
                save(tmp_path / "refused", method, delta, params, family=encoder.family)
        else:
            save(tmp_path / name, method, delta, params, family=encoder.family)
            want = states(encoder, method, params, delta)
            np.testing.assert_allclose(opened(folder, tmp_path / name), want, rtol=0, atol=2e-5)


def test_without_the_base_the_sizes_of_parts_are_unknown(base, tmp_path):
    kind, _, encoder, params = base
    method = create("lora", {"lora": {"rank": 2}})
    save(tmp_path, method, method.init(jax.random.key(0), params), params, family=encoder.family)
    if kind == "nomic_bert":
        assert load(tmp_path).delta.keys() == load(tmp_path, params).delta.keys()
    else:
        with pytest.raises(InterchangeError, match="target_modules includes what this type is not read for"):
            load(tmp_path)


def test_modules_that_peft_adapts_by_default(base):
    kind, *_ = base
    if kind in ("modernbert", "nomic_bert"):
        assert kind not in DEFAULTS
        assert find_family(kind).target_modules == ()
