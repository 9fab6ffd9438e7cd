"""Adapters to and from Hugging Face's peft, trained on either side; merged models in transformers and in
sentence-transformers."""

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

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.peft import METHODS, create, forward
from llm4rec_jax.peft.hf.save_load import load, merge, save
from tests.conftest import random_bert
from tests.helpers.tiny import encoder_folder

D, LENGTH = 24, 7
MASK = np.arange(LENGTH) < np.array([7, 4, 1])[:, None]
IDS = np.random.default_rng(0).integers(1, 97, MASK.shape) * MASK
WANT = np.random.default_rng(1).normal(size=(*MASK.shape, D)).astype(np.float32)

pytestmark = [
    # peft warns of every layer norm that it trains.
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*LayerNorm:UserWarning"),
    # peft warns when AdaLoRA has pruned a module down to nothing, which it may.
    pytest.mark.filterwarnings("ignore:Adapter 'default'. . LoRA tensor.s. have invalid shape:UserWarning"),
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
      drop: states of virtual tokens in front of peft's.
      steps: of training here, before it is written.
    """

    name: str
    options: dict[str, Any]
    config: hf.PeftConfig
    drop: int = 0
    steps: int = 3


def of(kind: type[hf.PeftConfig], **options: Any) -> hf.PeftConfig:
    return kind(task_type="FEATURE_EXTRACTION", **options)


QV = {"target_modules": ["query", "value"]}
MIX = {"target_modules": MIXED_THERE}
LORA = {"r": 3, "lora_alpha": 5}
CASES = {
    "lora": Case(
        "lora", {"rank": 3, "alpha": 5.0, "target": EVERY}, of(hf.LoraConfig, **LORA, target_modules="all-linear"),
        steps=0,
    ),
    "rslora": Case(
        "lora", {"rank": 3, "alpha": 2.5, "rslora": True}, of(hf.LoraConfig, **LORA, **QV, use_rslora=True),
        steps=0,
    ),
    "lora_plus": Case("lora_plus", {"rank": 3, "target": MIXED}, of(hf.LoraConfig, r=2, **MIX)),
    "dora": Case(
        "dora", {"rank": 3, "alpha": 5.0, "target": MIXED}, of(hf.LoraConfig, **LORA, **MIX, use_dora=True)
    ),
    "rsdora": Case("dora", {"rank": 3}, of(hf.LoraConfig, **LORA, **QV, use_dora=True, use_rslora=True), steps=0),
    "adalora": Case(
        "adalora", {"init_rank": 4, "rank": 2, "alpha": 50.0},
        of(hf.AdaLoraConfig, init_r=4, target_r=1, lora_alpha=30, total_step=6, tinit=1, tfinal=2, **QV),
    ),
    "vera": Case("vera", {"rank": 6, "target": MIXED}, of(hf.VeraConfig, r=6, **MIX)),
    "ia3": Case("ia3", {}, of(hf.IA3Config)),
    "layernorm": Case("layernorm", {}, of(hf.LNTuningConfig, target_modules=["LayerNorm"])),
    "prefix": Case("prefix", {"length": 3}, of(hf.PrefixTuningConfig, num_virtual_tokens=3)),
    "prefix network": Case(
        "prefix", {"length": 2, "reparametrise": True, "bottleneck": 11},
        of(hf.PrefixTuningConfig, num_virtual_tokens=2, prefix_projection=True, encoder_hidden_size=11),
        steps=0,
    ),
    "prompt": Case("prompt", {"length": 3}, of(hf.PromptTuningConfig, num_virtual_tokens=3), drop=3),
    "oft": Case(
        "oft", {"block": 8, "target": MIXED}, of(hf.OFTConfig, oft_block_size=8, use_cayley_neumann=False, **MIX)
    ),
    "oft series": Case("oft", {"block": 4, "neumann": 5}, of(hf.OFTConfig, r=3, oft_block_size=0, **QV), steps=0),
    "oft of 3 terms": Case(
        "oft", {"block": 4, "neumann": 4}, of(hf.OFTConfig, oft_block_size=12, num_cayley_neumann_terms=3, **QV),
        steps=0,
    ),
}  # fmt: skip
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def small() -> transformers.BertModel:
    return random_bert(num_hidden_layers=2)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    small().save_pretrained(folder)
    return pretrained.load(folder)


def states_there(model, drop: int = 0) -> torch.Tensor:
    ids, mask = torch.tensor(IDS), torch.tensor(MASK).long()
    return model(input_ids=ids, attention_mask=mask).last_hidden_state[:, drop:]


def trained_here(ours, method, steps: int) -> tuple[Any, np.ndarray]:
    """The delta after some updates from a start that is moved at random, and the states."""
    encoder, params = ours
    delta = moved(method, params, 0.2)

    if not steps:
        return delta, np.asarray(forward(encoder, method, params, delta, IDS, MASK))
    tx = method.optimizer(optax.adam(0.02), steps)

    @jax.jit
    def update(delta, state):
        def loss(delta):
            states = forward(encoder, method, params, delta, IDS, MASK)
            return jnp.square(states - WANT)[MASK].mean() + method.penalty(delta), states

        grads, states = jax.grad(loss, has_aux=True)(delta)
        updates, state = tx.update(grads, state, delta)
        return optax.apply_updates(delta, updates), state, states

    state = tx.init(delta)
    for _ in range(steps):
        delta, state, _ = update(delta, state)
    # Another update would begin with these states.
    return delta, np.asarray(update(delta, state)[2])


def moved(method, params, by: float):
    rng = np.random.default_rng(0)
    start = method.init(jax.random.key(0), params)
    return jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, by, a.shape), a.dtype), start)


def train_there(model, case: Case) -> None:
    tx = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.03)
    kept, want = torch.tensor(MASK), torch.tensor(WANT)
    model.train()
    for step in range(6 if case.name == "adalora" else 3):
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
    delta, states = trained_here(ours, method, case.steps)
    model = hf.PeftModel.from_pretrained(small(), save(tmp_path, method, delta, ours[1])).eval()
    with torch.no_grad():
        assert_states(states_there(model, case.drop).numpy(), states, plain)


@cases
def test_trained_in_peft_loads_here(ours, plain, tmp_path, case):
    torch.manual_seed(0)
    model = hf.get_peft_model(small(), case.config)
    train_there(model, case)
    with torch.no_grad():
        want = states_there(model, drop=case.drop).numpy()
    model.save_pretrained(tmp_path)
    encoder, params = ours
    loaded = load(tmp_path, params)
    states = np.asarray(forward(encoder, loaded.method, params, loaded.delta, IDS, MASK))
    assert_states(states, want, plain)
    assert loaded.others is None
    if case.name == "adalora":
        assert {len(own["lambda"]) for own in loaded.delta.values()} != {4}
    # The folder alone is enough.
    alone = load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, alone.delta, loaded.delta)
    # And back again.
    again = save(tmp_path / "again", loaded.method, loaded.delta, params)
    with torch.no_grad():
        assert_states(
            states_there(hf.PeftModel.from_pretrained(small(), again).eval(), drop=case.drop).numpy(), want, plain
        )


def test_a_long_list_of_modules(tmp_path):
    """peft abridges a list of 20 names or more."""
    base = random_bert(num_hidden_layers=4)
    base.save_pretrained(tmp_path / "base")
    encoder, params = pretrained.load(tmp_path / "base")
    for name, target in (("lora", r".*(?<!ffn/down)"), ("layernorm", ".*"), ("lora", ".*"), ("ia3", ".*")):
        method = create(name, {name: {"target": target}})
        delta = jax.tree.map(lambda a: a + 0.1, method.init(jax.random.key(0), params))
        folder = save(tmp_path / name, method, delta, params)
        model = hf.PeftModel.from_pretrained(random_bert(num_hidden_layers=4), folder).eval()
        with torch.no_grad():
            want = states_there(model).numpy()
        np.testing.assert_allclose(
            forward(encoder, method, params, delta, IDS, MASK)[MASK], want[MASK], rtol=0, atol=1e-5
        )
        model.save_pretrained(tmp_path / "again")
        jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "again", params).delta, delta)


@pytest.mark.parametrize(
    "config",
    [
        of(hf.LoraConfig, r=2, target_modules=["query", "dense"]),
        of(hf.VeraConfig, r=2, target_modules=["query", "dense"]),
        of(hf.IA3Config, target_modules=["query", "dense"], feedforward_modules=["dense"]),
        of(hf.OFTConfig, oft_block_size=8, target_modules=["query", "dense"]),
        of(hf.AdaLoraConfig, init_r=2, target_r=1, total_step=9, target_modules="all-linear"),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_what_is_for_the_pooler_is_left_out(ours, tmp_path, config):
    """With torch's pooler, which no hidden state depends on."""
    base = transformers.BertModel(small().config).eval()
    base.load_state_dict(small().state_dict(), strict=False)
    model = hf.get_peft_model(base, config).eval()
    assert any("pooler" in name for name, p in model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(0.0, 0.2)
        want = states_there(model).numpy()
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, ours[1])
    states = np.asarray(forward(ours[0], loaded.method, ours[1], loaded.delta, IDS, MASK))
    np.testing.assert_allclose(states[MASK], want[MASK], rtol=0, atol=1e-5)
    assert load(tmp_path).delta.keys() == loaded.delta.keys()


# --------------------------------------------------------------------------------------------------------------- merge
TEXTS = ["red lamp", "blue chair ; green door", "the user bought : white vase , frame and red stool", "unknown"]
OPTIONS = {
    "lora": {"rank": 3, "target": MIXED},
    "dora": {"rank": 3},
    "adalora": {"init_rank": 4, "rank": 2, "alpha": 90.0},
    "vera": {"rank": 6, "target": MIXED},
    "oft": {"block": 4},
    "galore": {"rank": 4},
    "last_k": {"k": 1},
}
MERGED = sorted(name for name in METHODS if create(name).merge is not None)


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    folder = encoder_folder(tmp_path_factory.mktemp("encoder"))
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, truncation=True, max_length=9, padding=True, return_tensors="np"
    )
    return folder, *pretrained.load(folder), tokens["input_ids"], tokens["attention_mask"].astype(bool)


def test_those_that_merge():
    assert MERGED == [
        "adalora", "bitfit", "dora", "frozen", "full", "galore", "ia3", "last_k", "layernorm", "lora", "lora_plus",
        "oft", "vera",
    ]  # fmt: skip


@pytest.mark.parametrize("spec", [*MERGED, "dora+bitfit+ia3", "vera+lora"])
def test_merged(tokenized, tmp_path, spec):
    folder, encoder, params, ids, mask = tokenized
    method = create(spec, {name: OPTIONS[name] for name in spec.split("+") if name in OPTIONS})
    delta = moved(method, params, 0.1)
    states = np.asarray(forward(encoder, method, params, delta, ids, mask))
    merge(tmp_path, encoder, params, method, delta, tokenizer_from=folder, max_tokens=9)
    model = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    with torch.no_grad():
        want = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long()).last_hidden_state.numpy()
    np.testing.assert_allclose(states[mask], want[mask], rtol=0, atol=1e-5)
    vectors = SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(POOLINGS["mean"]().apply({}, states, mask), vectors, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_merged_with_another_pooling(tokenized, tmp_path, pooling):
    folder, encoder, params, ids, mask = tokenized
    merge(tmp_path, encoder, params, create("frozen"), {}, tokenizer_from=folder, pooling=pooling, max_tokens=9)
    states = encoder.apply({"params": params}, ids, mask)
    vectors = SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(POOLINGS[pooling]().apply({}, states, mask), vectors, rtol=0, atol=1e-5)
