"""Methods that Hugging Face peft lacks, as their papers write them, in torch on a random BERT: states and gradients."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertLayer

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.peft import create, forward
from llm4rec_jax.trees import flatten, path_name, unflatten
from tests.conftest import random_bert
from tests.helpers.torch_side import IDS, MASK, NAMES, WEIGHTS, D, N, array, assert_grads, assert_states, run_torch

Tensors = dict[str, Any]
"""Nested as the delta is; its leaves are tensors that want a gradient."""


@pytest.fixture(scope="module")
def ours(bert_folder):
    return pretrained.load(bert_folder)


class Draw:
    """Random leaves of a torch graph."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, by: float = 0.3) -> torch.Tensor:
        return (by * torch.randn(shape, generator=self._generator)).requires_grad_()


def gelu(z: torch.Tensor) -> torch.Tensor:
    return z * 0.5 * (1 + torch.erf(z / 2**0.5))


def relu(z: torch.Tensor) -> torch.Tensor:
    return z.clamp(min=0)


def by_path(tree: Mapping[str, Any]) -> dict[str, Any]:
    return flatten(tree)


def transposed(path: Any, tensor: torch.Tensor) -> torch.Tensor:
    """Torch keeps the matrix of a linear layer as [out, in]."""
    return tensor.T if path_name(path).endswith("kernel") else tensor


def check(ours, method, weights: Tensors, run: Callable[[], np.ndarray], linear: bool = False) -> None:
    """`weights` have the layout of the method's delta, and with them states and gradients are those that `run` leaves.

    Args:
      run: makes the states and, on the weights, their gradients.
      linear: matrices named `kernel` are those of torch's linear layers.
    """
    turn = transposed if linear else lambda path, tensor: tensor
    delta = jax.tree_util.tree_map_with_path(lambda path, t: array(turn(path, t)), weights)
    assert jax.tree.map(np.shape, shapes(ours, method)) == jax.tree.map(np.shape, delta)
    states, grads = run_ours(ours, method, delta)
    assert_states(states, run(), ours)
    theirs = jax.tree_util.tree_map_with_path(lambda path, t: turn(path, t.grad), weights)
    assert_grads({"all": by_path(grads)}, {"all": by_path(theirs)})


def shapes(ours, method) -> Mapping[str, Any]:
    """The layout of the method's delta."""
    return jax.eval_shape(method.init, jax.random.key(0), ours[1])


def run_ours(ours, method, delta):
    """States and the delta's gradients of the weighted sum of states."""
    encoder, params = ours

    # Compiling is what takes time here.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def gradients(delta, params, ids, mask):
        def loss(delta):
            states = forward(encoder, method, params, delta, ids, mask)
            return (states * WEIGHTS).sum(), states

        return jax.grad(loss, has_aux=True)(delta)

    grads, states = gradients(delta, params, IDS, MASK)
    return np.asarray(states), grads


def frozen_bert() -> BertModel:
    return random_bert().requires_grad_(False)


def after(module: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    module.register_forward_hook(lambda _, inputs, output: change(output))


def test_pfeiffer(ours):
    """h + ReLU(h W_down + b) W_up + c, h the feed-forward sublayer's output before residual and norm."""
    model, draw, weights = frozen_bert(), Draw(0), {}
    inner = D // 4
    for i, layer in enumerate(model.encoder.layer):
        w = {"down": draw(D, inner), "down_bias": draw(inner), "up": draw(inner, D), "up_bias": draw(D)}
        weights[f"layer_{i}/ffn"] = w
        after(
            layer.output.dense,
            lambda h, w=w: h + relu(h @ w["down"] + w["down_bias"]) @ w["up"] + w["up_bias"],
        )
    check(ours, create("pfeiffer", {"pfeiffer": {"reduction": 4}}), weights, lambda: run_torch(model))


@pytest.mark.parametrize("options", [{}, {"reduction": 6, "scale": 0.7}], ids=["defaults", "others"])
def test_parallel(ours, options):
    """FFN(x) + s ReLU(x W_down) W_up, x what the feed-forward network reads."""
    model, draw, weights = frozen_bert(), Draw(1), {}
    inner, scale = D // options.get("reduction", 2), options.get("scale", 4.0)
    read = {}
    for i, layer in enumerate(model.encoder.layer):
        w = weights[f"layer_{i}/ffn"] = {"down": draw(D, inner), "up": draw(inner, D)}
        layer.intermediate.register_forward_pre_hook(lambda _, inputs, i=i: read.update({i: inputs[0]}))
        after(layer.output.dense, lambda h, i=i, w=w: h + scale * relu(read[i] @ w["down"]) @ w["up"])
    check(ours, create("parallel", {"parallel": options}), weights, lambda: run_torch(model))


@pytest.mark.parametrize(("n", "rank", "reduction"), [(4, 1, 3), (3, 2, 2)])
def test_compacter(ours, n, rank, reduction):
    """h + GELU(h W_down + b) W_up + c after both sublayers, W = Σ_i A_i ⊗ (s_i t_i) with the A_i of all alike."""
    model, draw = frozen_bert(), Draw(2)
    inner = D // reduction
    shared = draw(n, n, n, by=1.0)
    weights: Tensors = {"shared": {"a": shared}}

    def matrix(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return sum(torch.kron(shared[i], s[i] @ t[i]) for i in range(n))

    def adapter(site: str) -> Callable[[torch.Tensor], torch.Tensor]:
        w = weights[site] = {
            "down_s": draw(n, D // n, rank, by=0.5),
            "down_t": draw(n, rank, inner // n, by=0.5),
            "down_bias": draw(inner),
            "up_s": draw(n, inner // n, rank, by=0.5),
            "up_t": draw(n, rank, D // n, by=0.5),
            "up_bias": draw(D),
        }

        def change(h: torch.Tensor) -> torch.Tensor:
            down, up = matrix(w["down_s"], w["down_t"]), matrix(w["up_s"], w["up_t"])
            assert (down.shape, up.shape) == ((D, inner), (inner, D))
            return h + gelu(h @ down + w["down_bias"]) @ up + w["up_bias"]

        return change

    for i, layer in enumerate(model.encoder.layer):
        after(layer.attention.output.dense, adapter(f"layer_{i}/attention"))
        after(layer.output.dense, adapter(f"layer_{i}/ffn"))
    options = {"n": n, "rank": rank, "reduction": reduction}
    check(ours, create("compacter", {"compacter": options}), weights, lambda: run_torch(model))


def beside(model: BertModel, change: Callable[[tuple[torch.Tensor, ...]], torch.Tensor]) -> Callable[[], np.ndarray]:
    """A run of what makes the last states from all of them: those of the embeddings and after every block."""

    def run() -> np.ndarray:
        seen = model(
            input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK).long(), output_hidden_states=True
        ).hidden_states
        assert len(seen) == N + 1
        states = change(seen)
        (states * torch.tensor(WEIGHTS)).sum().backward()
        return states.detach().numpy()

    return run


@pytest.mark.parametrize(("layers", "blocks", "width", "heads"), [((0, -1), 2, 8, 2), ((1,), 1, 12, 3)])
def test_k_adapter(ours, layers, blocks, width, heads):
    """Every adapter is a ← f + T(f D + d) U + u with f = H + a, T of transformers' own blocks; [H_N; a] W + c."""
    draw = Draw(3)
    config = BertConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    weights: Tensors = {".layers/fuse": {"kernel": draw(D, 2 * D), "bias": draw(D)}}
    stacks = []
    for i in range(len(layers)):
        stacks.append([BertLayer(config).eval() for _ in range(blocks)])
        w = weights[f".layers/{i}"] = {
            "down": draw(D, width), "down_bias": draw(width), "up": draw(width, D), "up_bias": draw(D)
        }  # fmt: skip
        for j, block in enumerate(stacks[-1]):
            own = dict(block.named_parameters())
            with torch.no_grad():
                for name, p in own.items():
                    p.copy_(draw(*p.shape) + (1.0 if name.endswith("LayerNorm.weight") else 0.0))
            names = {
                path: NAMES.tensor(f"layer_0/{path}").removeprefix("encoder.layer.0.")
                for path in flatten(ours[1]["layer_0"])
            }
            assert sorted(names.values()) == sorted(own)
            w[f"block_{j}"] = unflatten({path: own[name] for path, name in names.items()})
    hidden = torch.zeros(len(MASK), 1, 1, MASK.shape[1]).masked_fill(~torch.tensor(MASK)[:, None, None], -1e30)

    def change(states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        a = torch.zeros_like(states[0])
        for i, layer in enumerate(layers):
            w = weights[f".layers/{i}"]
            f = states[1:][layer] + a
            z = f @ w["down"] + w["down_bias"]
            for block in stacks[i]:
                z = block(z, attention_mask=hidden)
            a = f + z @ w["up"] + w["up_bias"]
        fuse = weights[".layers/fuse"]
        return torch.cat([states[-1], a], dim=-1) @ fuse["kernel"].T + fuse["bias"]

    method = create("k_adapter", {"k_adapter": {"layers": layers, "blocks": blocks, "width": width, "heads": heads}})
    check(ours, method, weights, beside(frozen_bert(), change), linear=True)


@pytest.mark.parametrize(("every", "width", "temperature"), [(2, 8, 0.1), (1, 5, 0.5)])
def test_side(ours, every, width, temperature):
    """The ladder s ← f(μ s + (1 − μ) H_i D_i) on the blocks 1, 1 + every, … and H_N + s U."""
    draw = Draw(4)
    read = list(range(1, N + 1, every))
    weights: Tensors = {
        ".layers/0": {"reduce": draw(D, width)},
        ".layers/out": {"up": draw(width, D)},
        **{
            f".layers/{i}": {
                # Gates neither open nor shut.
                "gate": draw(by=temperature),
                "reduce": draw(D, width),
                "down": draw(width, width),
                "down_bias": draw(width),
                "up": draw(width, width),
                "up_bias": draw(width),
            }
            for i in read
        },
    }

    def change(states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        s = states[0] @ weights[".layers/0"]["reduce"]
        for i in read:
            w = weights[f".layers/{i}"]
            mu = 1 / (1 + torch.exp(-w["gate"] / temperature))
            z = mu * s + (1 - mu) * (states[i] @ w["reduce"])
            s = z + gelu(z @ w["down"] + w["down_bias"]) @ w["up"] + w["up_bias"]
        return states[-1] + s @ weights[".layers/out"]["up"]

    method = create("side", {"side": {"every": every, "width": width, "temperature": temperature}})
    check(ours, method, weights, beside(frozen_bert(), change))


def test_last_k(ours):
    """Torch training the parameters of its last k blocks."""
    k = 2
    model, draw = frozen_bert(), Draw(5)
    weights: Tensors = {}
    for i in range(N - k, N):
        for name, p in model.encoder.layer[i].named_parameters():
            with torch.no_grad():
                p.add_(draw(*p.shape, by=0.1))
            weights[f"encoder.layer.{i}.{name}"] = p.requires_grad_()
    method = create("last_k", {"last_k": {"k": k}})
    start = shapes(ours, method)
    names = {(site, leaf): NAMES.tensor(f"{site}/{leaf}") for site, arrays in start.items() for leaf in arrays}
    assert sorted(names.values()) == sorted(weights)
    nested: Tensors = {}
    for (site, leaf), name in names.items():
        nested.setdefault(site, {})[leaf] = weights[name]
    check(ours, method, nested, lambda: run_torch(model), linear=True)
