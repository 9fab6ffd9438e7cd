"""Adapters to and from Hugging Face's peft, trained on either side; merged models in transformers and in
sentence-transformers."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft as hf
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer

from llm4rec_jax.models import pretrained
from llm4rec_jax.models.pooling import POOLINGS
from llm4rec_jax.peft import create, forward
from llm4rec_jax.peft.interchange import load, merge, save
from tests.conftest import random_bert
from tests.tiny import encoder_folder

D, LENGTH = 24, 7
MASK = np.arange(LENGTH) < np.array([7, 4, 1])[:, None]
IDS = np.random.default_rng(0).integers(1, 97, MASK.shape) * MASK
WANT = np.random.default_rng(1).normal(size=(*MASK.shape, D)).astype(np.float32)

pytestmark = [
    # transformers' own name for it, called by peft's prefix tuning.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # What peft says of every layer norm that it trains.
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*LayerNorm:UserWarning"),
]

ATTENTION, EVERY = r".*/(query|value)", r".*"
MIXED = r".*/(query|up|down)"
"""Layers of three shapes."""
MIXED_THERE = r".*(query|intermediate\.dense|layer\.\d\.output\.dense)"


class Case(NamedTuple):
    """A method here and there.

    Attributes:
      name, options: here.
      config: there.
      shift: what the position ids of peft's model are to be given less, for a method that keeps text at 0.
      drop: states of virtual tokens in front of peft's.
    """

    name: str
    options: dict[str, Any]
    config: hf.PeftConfig
    shift: int = 0
    drop: int = 0


def of(kind: type[hf.PeftConfig], **options: Any) -> hf.PeftConfig:
    return kind(task_type="FEATURE_EXTRACTION", **options)


QV = {"target_modules": ["query", "value"]}
CASES = {
    "lora": Case("lora", {"rank": 3, "alpha": 5.0, "target": EVERY}, of(hf.LoraConfig, r=3, lora_alpha=5, target_modules="all-linear")),
    "rslora": Case("lora", {"rank": 3, "alpha": 2.5, "rslora": True}, of(hf.LoraConfig, r=3, lora_alpha=5, use_rslora=True, **QV)),
    "lora_plus": Case("lora_plus", {"rank": 3, "target": MIXED}, of(hf.LoraConfig, r=2, target_modules=MIXED_THERE)),
    "dora": Case("dora", {"rank": 3, "alpha": 5.0, "target": MIXED}, of(hf.LoraConfig, r=3, lora_alpha=5, use_dora=True, target_modules=MIXED_THERE)),
    "rsdora": Case("dora", {"rank": 3}, of(hf.LoraConfig, r=3, lora_alpha=5, use_dora=True, use_rslora=True, **QV)),
    "adalora": Case("adalora", {"init_rank": 4, "rank": 2, "alpha": 50.0}, of(hf.AdaLoraConfig, init_r=4, target_r=1, lora_alpha=30, total_step=6, tinit=1, tfinal=2, **QV)),
    "vera": Case("vera", {"rank": 6, "target": MIXED}, of(hf.VeraConfig, r=6, target_modules=MIXED_THERE)),
    "ia3": Case("ia3", {}, of(hf.IA3Config)),
    "layernorm": Case("layernorm", {}, of(hf.LNTuningConfig, target_modules=["LayerNorm"])),
    "prefix": Case("prefix", {"length": 3}, of(hf.PrefixTuningConfig, num_virtual_tokens=3), shift=3),
    "prefix network": Case(
        "prefix", {"length": 2, "reparametrise": True, "bottleneck": 11},
        of(hf.PrefixTuningConfig, num_virtual_tokens=2, prefix_projection=True, encoder_hidden_size=11), shift=2,
    ),
    "prompt": Case("prompt", {"length": 3}, of(hf.PromptTuningConfig, num_virtual_tokens=3), drop=3),
    "oft": Case("oft", {"block": 8, "target": MIXED}, of(hf.OFTConfig, oft_block_size=8, use_cayley_neumann=False, target_modules=MIXED_THERE)),
    "oft series": Case("oft", {"block": 4, "neumann": 5}, of(hf.OFTConfig, r=3, oft_block_size=0, **QV)),
    "oft of 3 terms": Case("oft", {"block": 4, "neumann": 4}, of(hf.OFTConfig, oft_block_size=12, num_cayley_neumann_terms=3, **QV)),
}  # fmt: skip
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(scope="module")
def ours(bert_folder):
    return pretrained.load(bert_folder)


def states_there(model, shift: int = 0, drop: int = 0) -> torch.Tensor:
    at = {"position_ids": (torch.arange(LENGTH) - shift).expand(MASK.shape)} if shift else {}
    ids, mask = torch.tensor(IDS), torch.tensor(MASK).long()
    return model(input_ids=ids, attention_mask=mask, **at).last_hidden_state[:, drop:]


def trained_here(ours, method, steps: int = 4) -> tuple[Any, np.ndarray]:
    """The delta after some updates from a start that is moved at random, and the states."""
    encoder, params = ours
    rng = np.random.default_rng(3)
    delta = method.init(jax.random.key(0), params)
    delta = jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, 0.2, a.shape), a.dtype), delta)
    tx = method.optimizer(optax.adam(0.02), steps)

    @jax.jit
    def update(delta, state):
        def loss(delta):
            states = forward(encoder, method, params, delta, IDS, MASK)
            return jnp.square(states - WANT)[MASK].mean() + method.penalty(delta)

        updates, state = tx.update(jax.grad(loss)(delta), state, delta)
        return optax.apply_updates(delta, updates), state

    state = tx.init(delta)
    for _ in range(steps):
        delta, state = update(delta, state)
    return delta, np.asarray(forward(encoder, method, params, delta, IDS, MASK))


def train_there(model, case: Case, steps: int = 6) -> None:
    tx = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.03)
    kept, want = torch.tensor(MASK), torch.tensor(WANT)
    model.train()
    for step in range(steps):
        tx.zero_grad()
        (states_there(model, drop=case.drop) - want)[kept].square().mean().backward()
        tx.step()
        if case.name == "adalora":
            model.base_model.update_and_allocate(step)
    model.eval()


def assert_states(states, want, plain) -> None:
    np.testing.assert_allclose(states[MASK], want[MASK], rtol=0, atol=1e-5)
    assert np.abs(states - plain)[MASK].max() > 0.05


@pytest.fixture(scope="module")
def plain(ours):
    encoder, params = ours
    return np.asarray(encoder.apply({"params": params}, IDS, MASK))


@cases
def test_trained_here_opens_in_peft(ours, plain, tmp_path, case):
    method = create(case.name, {case.name: case.options})
    delta, states = trained_here(ours, method)
    model = hf.PeftModel.from_pretrained(random_bert(), save(tmp_path, method, delta, ours[1])).eval()
    with torch.no_grad():
        assert_states(states_there(model, case.shift, case.drop).numpy(), states, plain)


@cases
def test_trained_in_peft_loads_here(ours, plain, tmp_path, case):
    torch.manual_seed(0)
    model = hf.get_peft_model(random_bert(), case.config)
    train_there(model, case)
    with torch.no_grad():
        want = states_there(model, drop=case.drop).numpy()
    model.save_pretrained(tmp_path)
    encoder, params = ours
    loaded = load(tmp_path, params)
    states = np.asarray(forward(encoder, loaded.method, params, loaded.delta, IDS, MASK))
    assert_states(states, want, plain)
    assert loaded.others is None
    # What the folder says of itself is enough.
    alone = load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, alone.delta, loaded.delta)
    # And back again.
    again = save(tmp_path / "again", loaded.method, loaded.delta, params)
    with torch.no_grad():
        assert_states(
            states_there(hf.PeftModel.from_pretrained(random_bert(), again).eval(), drop=case.drop).numpy(), want, plain
        )
