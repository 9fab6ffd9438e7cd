"""Methods whose arrays belong to modules, against Hugging Face peft: start, states, every gradient, merged weights."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import peft as hf
import pytest
import torch

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.peft import create
from llm4rec_jax.trees import flatten
from tests.helpers.torch_side import (
    ADALORA,
    LORA,
    Layout,
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

FFN = r".*(intermediate|layer\.\d+\.output)\.dense"
DOWN = r".*layer\.\d+\.output\.dense"
QUERY_FFN = r".*(query|intermediate\.dense|layer\.\d+\.output\.dense)"
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Case(NamedTuple):
    """Attributes:
    method, options: ours.
    config: makes peft's.
    layout: where peft keeps the arrays of the delta.
    around: means of what is drawn, by part of a name in torch; see `randomise`.
    drawn: arrays that are random at the start; the others are equal then.
    from_model: more options, from peft's model.
    """

    method: str
    options: Mapping[str, Any]
    config: Callable[[], hf.PeftConfig]
    layout: Layout
    around: Mapping[str, float] = NOTHING
    drawn: tuple[str, ...] = ()
    from_model: Callable[[hf.PeftModel], dict[str, Any]] = lambda model: {}


def dora(target: str, theirs: list[str] | str) -> Case:
    layout = {**LORA, "magnitude": ("lora_magnitude_vector.default.weight", torch.clone)}
    return Case(
        "dora",
        {"rank": 3, "alpha": 5.0, "target": target},
        lambda: hf.LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=theirs),
        layout,
        {"magnitude": 1.0},
        ("a",),
    )


def adalora(target: str, theirs: list[str] | str) -> Case:
    return Case(
        "adalora",
        {"init_rank": 5, "rank": 2, "alpha": 20.0, "target": target},
        lambda: hf.AdaLoraConfig(
            init_r=5, target_r=2, lora_alpha=20, total_step=10, tinit=2, tfinal=3, target_modules=theirs
        ),
        ADALORA,
        {"lora_E": 1.0},
        ("p", "q"),
    )


def vera(target: str, theirs: list[str] | str) -> Case:
    layout = {"d": ("vera_lambda_d.default", torch.clone), "b": ("vera_lambda_b.default", torch.clone)}

    def projections(model: hf.PeftModel) -> dict[str, Any]:
        a, b = (getattr(model.base_model, f"vera_{x}")["default"].numpy().T for x in "AB")
        return {"projections": (a, b)}

    return Case(
        "vera",
        {"rank": 7, "target": target},
        lambda: hf.VeraConfig(r=7, target_modules=theirs),
        layout,
        {"vera_lambda_d": 1.0},
        from_model=projections,
    )


def ia3(theirs: str, inputs: str = DOWN, **options: str) -> Case:
    return Case(
        "ia3",
        options,
        lambda: hf.IA3Config(target_modules=theirs, feedforward_modules=inputs),
        {"scale": ("ia3_l.default", torch.flatten)},
        {"ia3_l": 1.0},
    )


def oft(target: str, theirs: list[str] | str, neumann: int) -> Case:
    series = {"use_cayley_neumann": bool(neumann), "num_cayley_neumann_terms": neumann or 5}
    return Case(
        "oft",
        {"block": 8, "neumann": neumann, "target": target},
        lambda: hf.OFTConfig(oft_block_size=8, target_modules=theirs, **series),
        {"skew": ("oft_R.default.weight", torch.clone)},
    )


def layernorm() -> Case:
    where = "ln_tuning_layers.default"
    return Case(
        "layernorm",
        {},
        lambda: hf.LNTuningConfig(target_modules=r".*LayerNorm"),
        {"scale": (f"{where}.weight", torch.clone), "bias": (f"{where}.bias", torch.clone)},
        {f"{where}.weight": 1.0},
    )


QV = (r".*/(query|value)", ["query", "value"])
CASES = {
    "dora": dora(*QV),
    "dora, ffn": dora(r".*/ffn/(up|down)", FFN),
    "adalora": adalora(*QV),
    "adalora, ffn": adalora(r".*/ffn/(up|down)", FFN),
    "vera": vera(*QV),
    "vera, of three shapes": vera(r".*/(query|up|down)", QUERY_FFN),
    "ia3": ia3(rf".*(key|value)|{DOWN}"),
    "ia3, inputs of others": ia3(
        r".*(query|dense)",
        r".*(query|attention\.output\.dense)",
        target=r".*/(query|output|up|down)",
        feedforward=r".*/(query|output)",
    ),
    "oft": oft(*QV, neumann=0),
    "oft, ffn": oft(r".*/ffn/(up|down)", FFN, neumann=0),
    "oft, four terms": oft(*QV, neumann=4),
    "oft, five terms": oft(r".*/(query|up|down)", QUERY_FFN, neumann=5),
    "oft, eight terms": oft(*QV, neumann=8),
    "layernorm": layernorm(),
}


@pytest.fixture(scope="module")
def ours(bert_folder):
    return pretrained.load(bert_folder)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def build(ours, case: Case):
    """Ours, its delta at the start, and peft's."""
    model = adapted(case.config())
    method = create(case.method, {case.method: {**case.options, **case.from_model(model)}})
    return method, method.init(jax.random.key(0), ours[1]), model


def test_start(ours, case):
    _, start, model = build(ours, case)
    theirs = tensors(model, start, case.layout)
    for site, arrays in start.items():
        for name, ours_ in arrays.items():
            if name not in case.drawn:
                np.testing.assert_allclose(
                    ours_, theirs[site][name].numpy(), rtol=1e-6, atol=0, err_msg=f"{site} {name}"
                )
    for name in case.drawn:
        drawn, want = (np.concatenate([np.ravel(own[name]) for own in delta.values()]) for delta in (start, theirs))
        assert drawn.std() == pytest.approx(want.std(), rel=0.1)


def test_states_and_gradients(ours, case):
    method, start, model = build(ours, case)
    randomise(model, case.around)
    states, grads = run_ours(ours, method, jax.tree.map(array, tensors(model, start, case.layout)))
    assert_states(states, run_torch(model), ours)
    want = tensors(model, start, case.layout, grad=True)
    assert all(gradient.any() for arrays in want.values() for gradient in arrays.values())
    assert_grads(grads, want)


def test_merged_equals_peft_merged(ours, case):
    method, start, model = build(ours, case)
    randomise(model, case.around)
    delta = jax.tree.map(array, tensors(model, start, case.layout))
    merged = method.merge(ours[1], delta)
    before, after = flatten(ours[1]), flatten(merged)
    changed = {path.rpartition("/")[0] for path in before if np.abs(before[path] - after[path]).max() > 0.05}
    assert changed == set(start)
    assert_merged(merged, model)
