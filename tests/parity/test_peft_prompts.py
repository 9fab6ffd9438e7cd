"""Prompts and reparametrised prefixes against Hugging Face peft: states, the gradient of every array, what is saved."""

import jax
import numpy as np
import peft as hf
import pytest
import torch

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.peft import create
from llm4rec_jax.peft.methods.prefix import plain
from tests.helpers.torch_side import (
    D,
    N,
    Tensors,
    adapted,
    array,
    assert_grads,
    assert_states,
    randomise,
    run_ours,
    run_torch,
)

OPTIONS = {"length": 4, "reparametrise": True, "bottleneck": 64}


def projected() -> hf.PeftConfig:
    return hf.PrefixTuningConfig(num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=64)


@pytest.fixture(scope="module")
def ours(bert_folder):
    return pretrained.load(bert_folder)


@pytest.mark.parametrize("length", [1, 4])
def test_prompt(ours, length):
    model = adapted(hf.PromptTuningConfig(num_virtual_tokens=length))
    randomise(model)
    (table,) = (p for p in model.parameters() if p.requires_grad)
    method = create("prompt", {"prompt": {"length": length}})
    delta = {"embeddings/word": {"prompt": array(table)}}
    start = method.init(jax.random.key(0), ours[1])
    assert jax.tree.map(np.shape, start) == jax.tree.map(np.shape, delta)
    states, grads = run_ours(ours, method, delta)
    assert_states(states, run_torch(model, prompt=length), ours)
    assert_grads(grads, {"embeddings/word": {"prompt": table.grad}})


def split(tensor: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    """[..., 2 N D] to prefixes by site: keys of layer l are block 2l, values block 2l + 1."""
    blocks = tensor.detach().unflatten(-1, (2 * N, D))
    return {
        f"layer_{i}/attention": {"key": blocks[..., 2 * i, :], "value": blocks[..., 2 * i + 1, :]} for i in range(N)
    }


def reparametrised(model: hf.PeftModel, grad: bool = False) -> Tensors:
    """Embedding, Linear, tanh, Linear of peft's as our delta."""
    (encoder,) = model.prompt_encoder.values()
    own = {name: (p.grad if grad else p).detach() for name, p in encoder.named_parameters() if p.requires_grad}
    rows = own.pop("embedding.weight")
    hidden, hidden_bias = own.pop("transform.0.weight").T, own.pop("transform.0.bias")
    last, bias = split(own.pop("transform.2.weight").T), split(own.pop("transform.2.bias"))
    assert not own
    return {
        **{site: {**arrays, **{f"{n}_bias": b for n, b in bias[site].items()}} for site, arrays in last.items()},
        "shared": {"rows": rows, "hidden": hidden, "hidden_bias": hidden_bias},
    }


def test_reparametrised_prefix(ours):
    model = adapted(projected())
    randomise(model, {"embedding": 1.0})
    method = create("prefix", {"prefix": OPTIONS})
    delta = jax.tree.map(array, reparametrised(model))
    assert jax.tree.map(np.shape, method.init(jax.random.key(0), ours[1])) == jax.tree.map(np.shape, delta)
    states, grads = run_ours(ours, method, delta)
    assert_states(states, run_torch(model), ours)
    assert_grads(grads, reparametrised(model, grad=True))


def test_reparametrised_prefix_starts_as_in_peft(ours):
    """All but the rows, which are N(0, 1) in peft and as small as other prefixes here."""
    start = create("prefix", {"prefix": OPTIONS}).init(jax.random.key(0), ours[1])

    def spread(delta):
        """The standard deviation of each kind of array, all sites together."""
        together = {}
        for own in delta.values():
            for name, a in own.items():
                together.setdefault(name, []).append(np.ravel(a))
        return {name: np.concatenate(arrays).std() for name, arrays in together.items()}

    ours_, theirs = spread(start), spread(reparametrised(adapted(projected())))
    assert ours_.pop("rows") == pytest.approx(0.02, rel=0.15)
    assert theirs.pop("rows") == pytest.approx(1.0, rel=0.15)
    assert ours_ == pytest.approx(theirs, rel=0.15)


def test_plain_is_what_peft_saves(ours):
    model = adapted(projected())
    randomise(model, {"embedding": 1.0})
    delta = jax.tree.map(array, reparametrised(model))
    saved = split(model.get_prompt_embedding_to_save("default"))
    found = plain(delta)
    assert {site: set(arrays) for site, arrays in found.items()} == {site: set(own) for site, own in saved.items()}
    for site, arrays in saved.items():
        for name, want in arrays.items():
            assert want.abs().max() > 0.1
            np.testing.assert_allclose(found[site][name], want.numpy(), rtol=0, atol=1e-6, err_msg=f"{site} {name}")
    # A plain prefix of those is the same method.
    states, _ = run_ours(ours, create("prefix", {"prefix": {"length": 4}}), found)
    assert_states(states, run_torch(model), ours)
