"""Methods against Hugging Face peft and torch on a random BERT: outputs, and the gradient of every trainable array."""

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf
import pytest
import torch

from llm4rec_jax.models import pretrained
from llm4rec_jax.peft import create, forward
from tests.conftest import random_bert

D, N, LENGTH = 24, 3, 7
MASK = np.arange(LENGTH) < np.array([7, 4, 1])[:, None]
# Id 0 is padding and nothing else: torch gives its embedding no gradient.
IDS = np.random.default_rng(0).integers(1, 97, MASK.shape) * MASK
WEIGHTS = np.random.default_rng(1).normal(size=(*MASK.shape, D)).astype(np.float32) * MASK[..., None]

# transformers' own name for it, called by peft's prefix tuning.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def ours(bert_folder):
    return pretrained.load(bert_folder)


def run_ours(ours, method, delta):
    """States and the delta's gradients of the weighted sum of states."""
    encoder, params = ours

    def loss(delta):
        states = forward(encoder, method, params, delta, IDS, MASK)
        return (states * WEIGHTS).sum(), states

    grads, states = jax.grad(loss, has_aux=True)(delta)
    return np.asarray(states), grads


def run_torch(model, shift: int = 0) -> np.ndarray:
    """States; gradients are left on the parameters. `shift`: what peft adds to position ids."""
    positions = torch.arange(LENGTH).expand(MASK.shape) - shift
    states = model(
        input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK).long(), position_ids=positions
    ).last_hidden_state
    (states * torch.tensor(WEIGHTS)).sum().backward()
    return states.detach().numpy()


def randomise(model) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(0.0, 0.2)


def array(tensor: torch.Tensor) -> jax.Array:
    return jnp.asarray(tensor.detach().numpy())


def assert_grads(grads, want: dict[str, dict[str, torch.Tensor]]) -> None:
    """Each array to 1e-4 of its largest value, or of a hundredth of the largest of all, if that is more."""
    assert {s: set(g) for s, g in grads.items()} == {s: set(g) for s, g in want.items()}
    floor = 1e-2 * max(float(t.abs().max()) for g in want.values() for t in g.values())
    for site, tensors in want.items():
        for name, tensor in tensors.items():
            scale = max(float(tensor.abs().max()), floor)
            assert np.abs(grads[site][name] - tensor.numpy()).max() <= 1e-4 * scale, (site, name)


def assert_states(states, want, plain_ours) -> None:
    np.testing.assert_allclose(states[MASK], want[MASK], rtol=0, atol=1e-5)
    encoder, params = plain_ours
    assert np.abs(states - encoder.apply({"params": params}, IDS, MASK))[MASK].max() > 0.05


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
    rslora = options.get("rslora", False)
    config = hf.LoraConfig(r=3, lora_alpha=5, target_modules=theirs, use_rslora=rslora, task_type="FEATURE_EXTRACTION")
    model = hf.get_peft_model(random_bert(), config).eval()
    randomise(model)
    method = create("lora", {"lora": {"rank": 3, "alpha": 5.0, "target": target, **options}})
    delta = method.init(jax.random.key(0), ours[1])
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(delta)

    def of(site: str, letter: str) -> torch.Tensor:
        module = pretrained.to_torch_name(f"{site}/kernel").removesuffix(".weight")
        return trained[f"base_model.model.{module}.lora_{letter}.default.weight"]

    delta = {site: {"a": array(of(site, "A")).T, "b": array(of(site, "B")).T} for site in delta}
    states, grads = run_ours(ours, method, delta)
    assert_states(states, run_torch(model), ours)
    assert_grads(grads, {s: {"a": of(s, "A").grad.T, "b": of(s, "B").grad.T} for s in delta})


def test_lora_merged_equals_peft_merged(ours):
    config = hf.LoraConfig(r=3, lora_alpha=5, target_modules=["query", "value"], task_type="FEATURE_EXTRACTION")
    model = hf.get_peft_model(random_bert(), config).eval()
    randomise(model)
    method = create("lora", {"lora": {"rank": 3, "alpha": 5.0}})
    weights = {n.removeprefix("base_model.model.encoder.layer."): p for n, p in model.named_parameters()}
    delta = {}
    for i in range(N):
        for name in ("query", "value"):
            a, b = (array(weights[f"{i}.attention.self.{name}.lora_{x}.default.weight"]).T for x in "AB")
            delta[f"layer_{i}/attention/{name}"] = {"a": a, "b": b}
    merged = pretrained.flatten(method.merge(ours[1], delta))
    theirs = dict(model.merge_and_unload().named_parameters())
    for path, a in merged.items():
        want = theirs[pretrained.to_torch_name(path)].detach().numpy()
        np.testing.assert_allclose(a, want.T if path.endswith("/kernel") else want, rtol=0, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("length", [1, 4])
def test_prefix(ours, length):
    config = hf.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=length)
    model = hf.get_peft_model(random_bert(), config).eval()
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
    assert_states(states, run_torch(model, shift=length), ours)
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
            p = theirs[pretrained.to_torch_name(f"{site}/{leaf}")]
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
    config = hf.LoraConfig(target_modules=["query"], task_type="FEATURE_EXTRACTION")
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 8, 0.0)
    model = hf.get_peft_model(random_bert(hidden_size=256, num_attention_heads=4), config)
    a = np.concatenate([p.detach().numpy().ravel() for n, p in model.named_parameters() if "lora_A" in n])
    b = [p for n, p in model.named_parameters() if "lora_B" in n]
    params = {f"layer_{i}": {"attention": {"query": {"kernel": jnp.zeros((256, 256))}}} for i in range(3)}
    ours = create("lora", {"lora": {"target": ".*/query"}}).init(jax.random.key(0), params)
    drawn = np.concatenate([d["a"].ravel() for d in ours.values()])
    assert len(drawn) == len(a)
    assert not any(t.any() for t in b)
    assert np.abs(drawn).max() == pytest.approx(np.abs(a).max(), rel=0.01)
    assert drawn.std() == pytest.approx(a.std(), rel=0.05)
