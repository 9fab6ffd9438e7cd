"""Our BERT against transformers' torch BertModel: hidden states, gradients, and folders in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from llm4rec_jax.data import assets
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.trees import flatten
from tests.conftest import random_bert
from tests.helpers.torch_side import NAMES

ODD = [
    {},
    {"hidden_size": 15, "num_attention_heads": 3, "intermediate_size": 7, "num_hidden_layers": 1, "vocab_size": 11},
    {"hidden_size": 22, "num_attention_heads": 1, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    {"hidden_size": 16, "num_attention_heads": 8, "hidden_act": "relu", "type_vocab_size": 3},
]


def batch(vocabulary: int, rows: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.arange(length) < rng.integers(1, length + 1, rows)[:, None]
    mask[0] = True
    # Id 0 is padding and nothing else: torch gives its embedding no gradient.
    return rng.integers(1, vocabulary, (rows, length)) * mask, mask


def torch_states(model, ids, mask) -> torch.Tensor:
    return model(torch.tensor(ids), attention_mask=torch.tensor(mask).long()).last_hidden_state


@pytest.mark.parametrize("config", ODD)
@pytest.mark.parametrize("remat", [False, True])
def test_states_and_all_gradients_equal_torch(tmp_path, config, remat):
    model = random_bert(1, **config)
    model.save_pretrained(tmp_path)
    encoder, params = pretrained.load(tmp_path, remat=remat)
    ids, mask = batch(model.config.vocab_size, 5, 13)
    weights = np.random.default_rng(2).normal(size=(5, 13, model.config.hidden_size)).astype(np.float32)
    weights *= mask[..., None]

    states = torch_states(model, ids, mask)
    (states * torch.tensor(weights)).sum().backward()

    def loss(params):
        out = encoder.apply({"params": params}, jnp.asarray(ids), jnp.asarray(mask))
        return (out * weights).sum(), out

    (_, ours), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(ours[mask], states.detach().numpy()[mask], atol=1e-5)
    theirs = {n: p.grad.numpy() for n, p in model.named_parameters()}
    flat = flatten(grads)
    assert len(flat) == len(theirs)
    for path, grad in flat.items():
        want = theirs[NAMES.tensor(path)]
        want = want.T if path.endswith("/kernel") else want
        # A key's bias moves all of a row's scores alike: its gradient is zero but for rounding.
        scale = max(np.abs(want).max(), 1e-2 * max(np.abs(g).max() for g in theirs.values()))
        assert np.abs(grad - want).max() <= 1e-4 * scale, path


def test_minilm_equals_torch():
    encoder, params = pretrained.load(assets.minilm())
    model = transformers.BertModel.from_pretrained(assets.minilm(), add_pooling_layer=False).eval()
    ids, mask = batch(30522, 4, 19)
    with torch.no_grad():
        want = torch_states(model, ids, mask).numpy()
    ours = jax.jit(encoder.apply)({"params": params}, ids, mask)
    np.testing.assert_allclose(ours[mask], want[mask], atol=1e-5)
    assert sum(a.size for a in jax.tree.leaves(params)) == sum(p.numel() for p in model.parameters())


def test_token_types(bert_folder):
    encoder, params = pretrained.load(bert_folder)
    ids, mask = batch(97, 3, 8)
    kinds = np.random.default_rng(0).integers(0, 2, (3, 8))
    with torch.no_grad():
        want = random_bert()(torch.tensor(ids), torch.tensor(mask).long(), torch.tensor(kinds)).last_hidden_state
    ours = encoder.apply({"params": params}, ids, mask, kinds)
    np.testing.assert_allclose(ours[mask], want.numpy()[mask], atol=1e-5)


def test_saved_folder_opens_in_torch_with_equal_outputs(tmp_path, bert_folder):
    encoder, params = pretrained.load(bert_folder)
    params = jax.tree.map(lambda a: a + 0.01, params)
    pretrained.save(tmp_path / "ours", encoder, params)
    model, info = transformers.BertModel.from_pretrained(
        tmp_path / "ours", add_pooling_layer=False, output_loading_info=True
    )
    assert not any(info.values())
    ids, mask = batch(97, 3, 8)
    with torch.no_grad():
        want = torch_states(model.eval(), ids, mask).numpy()
    np.testing.assert_allclose(encoder.apply({"params": params}, ids, mask)[mask], want[mask], atol=1e-5)


def test_first_layers_are_torchs_hidden_states(bert_folder):
    ids, mask = batch(97, 3, 8)
    with torch.no_grad():
        states = random_bert()(torch.tensor(ids), torch.tensor(mask).long(), output_hidden_states=True).hidden_states
    for k in (1, 2, 3):
        encoder, params = pretrained.load(bert_folder, layers=k)
        ours = encoder.apply({"params": params}, ids, mask)
        np.testing.assert_allclose(ours[mask], states[k].numpy()[mask], atol=1e-5)
