"""Methods against Hugging Face peft and torch on a random BERT: outputs, and the gradient of every trainable array."""

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf
import pytest
import torch

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.peft import create
from tests.conftest import random_bert
from tests.helpers.torch_side import (
    LORA,
    NAMES,
    D,
    N,
    adapted,
    array,
    assert_grads,
    assert_merged,
    assert_states,
    randomise,
    run_ours,
    run_torch,
    tensors,
)


@pytest.fixture(scope="module")
def ours(bert_folder):
    return pretrained.load(bert_folder)


@pytest.mark.parametrize(
    ("options", "target", "theirs"),
    [
        ({}, r".*/(query|value)", ["query", "value"]),
        ({"rslora": True}, r".*/(query|value)", ["query", "value"]),
        ({}, r".*/ffn/(up|down)", r".*(intermediate|layer\.\d+\.output)\.dense"),
        ({}, r".*", r".*(query|key|value|dense)"),
    ],
    ids=["query, value", "rslora", "ffn", "all"],
)
def test_lora(ours, options, target, theirs):
    model = adapted(hf.LoraConfig(r=3, lora_alpha=5, target_modules=theirs, use_rslora=options.get("rslora", False)))
    randomise(model)
    method = create("lora", {"lora": {"rank": 3, "alpha": 5.0, "target": target, **options}})
    start = method.init(jax.random.key(0), ours[1])
    states, grads = run_ours(ours, method, jax.tree.map(array, tensors(model, start, LORA)))
    assert_states(states, run_torch(model), ours)
    assert_grads(grads, tensors(model, start, LORA, grad=True))


def test_lora_merged_equals_peft_merged(ours):
    model = adapted(hf.LoraConfig(r=3, lora_alpha=5, target_modules=["query", "value"]))
    randomise(model)
    method = create("lora", {"lora": {"rank": 3, "alpha": 5.0}})
    delta = jax.tree.map(array, tensors(model, method.init(jax.random.key(0), ours[1]), LORA))
    assert_merged(method.merge(ours[1], delta), model)


@pytest.mark.parametrize("length", [1, 4])
def test_prefix(ours, length):
    model = adapted(hf.PrefixTuningConfig(num_virtual_tokens=length))
    randomise(model)
    (table,) = (p for p in model.parameters() if p.requires_grad)
    assert table.shape == (length, 2 * N * D)

    def split(tensor: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
        # Keys of layer l in columns 2l, values in 2l + 1.
        columns = tensor.detach().reshape(length, 2 * N, D)
        return {f"layer_{i}/attention": {"key": columns[:, 2 * i], "value": columns[:, 2 * i + 1]} for i in range(N)}

    method = create("prefix", {"prefix": {"length": length}})
    delta = jax.tree.map(array, split(table))
    states, grads = run_ours(ours, method, delta)
    assert_states(states, run_torch(model), ours)
    assert_grads(grads, split(table.grad))


@pytest.mark.parametrize("name", ["bitfit", "full"])
def test_bitfit_and_full_are_torch_training_those_arrays(ours, name):
    model = random_bert()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    for n, p in model.named_parameters():
        p.requires_grad_(name == "full" or n.endswith(".bias"))
    method = create(name)
    delta = method.init(jax.random.key(0), ours[1])
    theirs = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def convert(grad: bool) -> dict[str, dict[str, torch.Tensor]]:
        def one(site: str, leaf: str) -> torch.Tensor:
            p = theirs[NAMES.tensor(f"{site}/{leaf}")]
            t = (p.grad if grad else p).detach()
            return t.T if leaf == "kernel" else t

        return {site: {leaf: one(site, leaf) for leaf in arrays} for site, arrays in delta.items()}

    assert sum(map(len, delta.values())) == len(theirs)
    # BitFit's other arrays are those of the folder.
    if name == "bitfit":
        with torch.no_grad():
            for (_, p), (_, original) in zip(model.named_parameters(), random_bert().named_parameters(), strict=True):
                if not p.requires_grad:
                    p.copy_(original)
    states, grads = run_ours(ours, method, jax.tree.map(array, convert(grad=False)))
    assert_states(states, run_torch(model), ours)
    assert_grads(grads, convert(grad=True))


def test_houlsby(ours):
    """h + GELU(h W_down + b) W_up + c after both sublayers' last projections, by hooks on torch's BERT."""
    model = random_bert().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    inner = D // 4
    shapes = {"down": (D, inner), "down_bias": (inner,), "up": (inner, D), "up_bias": (D,)}
    adapters = {}

    def adapter(site: str):
        weights = {n: (0.3 * torch.randn(s, generator=generator)).requires_grad_() for n, s in shapes.items()}
        adapters[site] = weights

        def hook(module, inputs, h):
            z = h @ weights["down"] + weights["down_bias"]
            z = z * 0.5 * (1 + torch.erf(z / 2**0.5))
            return h + z @ weights["up"] + weights["up_bias"]

        return hook

    for i, layer in enumerate(model.encoder.layer):
        layer.attention.output.dense.register_forward_hook(adapter(f"layer_{i}/attention"))
        layer.output.dense.register_forward_hook(adapter(f"layer_{i}/ffn"))
    method = create("houlsby", {"houlsby": {"reduction": 4}})
    start = method.init(jax.random.key(0), ours[1])
    assert jax.tree.map(np.shape, start) == {s: {n: tuple(t.shape) for n, t in w.items()} for s, w in adapters.items()}
    states, grads = run_ours(ours, method, jax.tree.map(array, adapters))
    assert_states(states, run_torch(model), ours)
    assert_grads(grads, {site: {n: t.grad for n, t in w.items()} for site, w in adapters.items()})


def test_defaults_are_pefts():
    """Rank, scale and initial distribution of LoRA, as peft has them."""
    config = hf.LoraConfig(target_modules=["query"])
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 8, 0.0)
    model = adapted(config, hidden_size=256)
    a = np.concatenate([p.detach().numpy().ravel() for n, p in model.named_parameters() if "lora_A" in n])
    b = [p for n, p in model.named_parameters() if "lora_B" in n]
    params = {f"layer_{i}": {"attention": {"query": {"kernel": jnp.zeros((256, 256))}}} for i in range(3)}
    ours = create("lora", {"lora": {"target": ".*/query"}}).init(jax.random.key(0), params)
    drawn = np.concatenate([d["a"].ravel() for d in ours.values()])
    assert len(drawn) == len(a)
    assert not any(t.any() for t in b)
    assert np.abs(drawn).max() == pytest.approx(np.abs(a).max(), rel=0.01)
    assert drawn.std() == pytest.approx(a.std(), rel=0.05)
