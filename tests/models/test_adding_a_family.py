"""The family of the guide, registered from a temporary file: it loads, equals transformers, saves, and is adapted."""

import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from transformers import Starcoder2Config

from llm4rec_jax.models.encoders.base import FAMILIES
from llm4rec_jax.models.encoders.huggingface import load, save
from llm4rec_jax.peft.core import forward
from llm4rec_jax.peft.registry import create
from llm4rec_jax.peft.sites import count
from tests.models.decoders.parity import RIGHT, Pair, check_gradients, check_states, make_pair

GUIDE = Path(__file__).parents[2] / "docs/guides/adding_a_model_family.md"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("starcoder2")
    found = re.search(r"<!-- the family -->\n```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    assert len(found[1].splitlines()) <= 80
    (folder / "starcoder2_family.py").write_text(found[1], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("starcoder2_family", folder / "starcoder2_family.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    config = Starcoder2Config(
        vocab_size=41,
        hidden_size=18,
        intermediate_size=29,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=64,
        sliding_window=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    yield make_pair(config, folder / "model")
    del FAMILIES["starcoder2"]


def test_it_computes_as_transformers_does(pair: Pair):
    check_states(pair, RIGHT, atol=1e-5)
    check_states(pair, RIGHT[:, ::-1], atol=1e-5)
    check_gradients(pair, RIGHT)


def test_it_is_saved_and_loaded(pair: Pair, tmp_path):
    folder = save(tmp_path / "ours", pair.decoder, pair.params)
    decoder, params = load(folder)
    assert decoder.config == load(pair.folder)[0].config
    jax.tree.map(np.testing.assert_array_equal, params, pair.params)


@pytest.mark.parametrize("name", ["lora", "houlsby", "ia3", "bitfit"])
def test_methods_reach_its_sites(pair: Pair, name):
    method = create(name)
    delta = method.init(jax.random.key(0), pair.params)
    assert count(delta) > 0
    ids = np.ones(RIGHT.shape, int)

    def loss(delta):
        return forward(pair.decoder, method, pair.params, delta, ids, RIGHT).mean()

    largest = [np.abs(g).max() for g in jax.tree.leaves(jax.grad(loss)(delta))]
    assert max(largest) > 0
