"""Defaults against those of Hugging Face peft: options, the modules that are adapted, VeRA's random matrices."""

import jax
import numpy as np
import peft as hf
import pytest
from peft.tuners.tuners_utils import BaseTunerLayer

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.peft import create
from llm4rec_jax.peft.methods.vera import draw_projections
from tests.helpers.torch_side import NAMES, N, adapted

LORA = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rslora": "use_rslora"}
ADALORA = {
    "init_rank": "init_r",
    "rank": "target_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "beta1": "beta1",
    "beta2": "beta2",
    "penalty": "orth_reg_weight",
    "every": "deltaT",
}
VERA = {"rank": "r", "d_initial": "d_initial", "dropout": "vera_dropout", "seed": "projection_prng_key"}


# Method: peft's config, its fields that are our options, and options that it gives another default, or none.
OPTIONS = {
    "lora": (hf.LoraConfig(), LORA, {}),
    "lora_plus": (hf.LoraConfig(), LORA, {}),
    "dora": (hf.LoraConfig(use_dora=True), {name: LORA[name] for name in ("rank", "alpha", "dropout")}, {}),
    # Shares of a run, where peft has numbers of steps that it leaves to the caller.
    "adalora": (hf.AdaLoraConfig(total_step=1), ADALORA, {"initial": ("tinit", 0), "final": ("tfinal", 0)}),
    "vera": (hf.VeraConfig(), VERA, {}),
    # Exact here, a series of five terms in peft.
    "oft": (hf.OFTConfig(), {"block": "oft_block_size"}, {"neumann": ("num_cayley_neumann_terms", 5)}),
    "prefix": (
        hf.PrefixTuningConfig(),
        {"reparametrise": "prefix_projection"},
        {"length": ("num_virtual_tokens", None), "bottleneck": ("encoder_hidden_size", None)},
    ),
    "prompt": (hf.PromptTuningConfig(), {}, {"length": ("num_virtual_tokens", None)}),
}

# Method: options, peft's config without target modules, and modules of a block that only peft adapts.
TARGETS = {
    "lora": ({}, hf.LoraConfig(), ()),
    "dora": ({}, hf.LoraConfig(use_dora=True), ()),
    "adalora": ({}, hf.AdaLoraConfig(total_step=1), ()),
    "vera": ({}, hf.VeraConfig(), ()),
    # peft's "output.dense" is how two names end; the paper scales the feed-forward network only.
    "ia3": ({}, hf.IA3Config(), ("attention/output",)),
    "oft": ({"block": 8}, hf.OFTConfig(oft_block_size=8), ()),
}


@pytest.fixture(scope="module")
def ours(bert_folder):
    return pretrained.load(bert_folder)


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    config, same, different = OPTIONS[name]
    options = create(name).options
    assert {ours: options[ours] for ours in same} == {ours: getattr(config, theirs) for ours, theirs in same.items()}
    for ours, (theirs, value) in different.items():
        assert getattr(config, theirs) == value != options[ours]
    # The rest says where, or what peft has no option for.
    assert set(options) - set(same) - set(different) <= {"target", "stddev", "ratio", "projections", "shift"}


@pytest.mark.parametrize("name", TARGETS)
def test_targets(ours, name):
    options, config, more = TARGETS[name]
    sites = set(create(name, {name: options}).init(jax.random.key(0), ours[1]))
    extra = {f"layer_{i}/{module}" for i in range(N) for module in more}
    assert not extra & sites
    modules = adapted(config).get_base_model().named_modules()
    assert {NAMES.module(site) for site in sites | extra} == {n for n, m in modules if isinstance(m, BaseTunerLayer)}


def test_vera_draws_from_the_distributions_of_peft():
    rank, widest = 64, 96
    model = adapted(hf.VeraConfig(r=rank, target_modules=["query"]), hidden_size=widest, num_attention_heads=4)
    theirs = [getattr(model.base_model, f"vera_{x}")["default"].numpy().T for x in "AB"]
    pair = draw_projections(rank, 0, widest, widest)
    for matrix, want, width in zip(pair, theirs, (widest, rank), strict=True):
        bound = (6 / width) ** 0.5
        assert matrix.shape == want.shape
        assert matrix.dtype == np.float32
        for drawn in (matrix, want):
            assert 0.99 * bound < np.abs(drawn).max() <= bound * (1 + 1e-6)
            assert drawn.mean() == pytest.approx(0, abs=0.03 * bound)
            assert drawn.std() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_vera_draws_by_seed():
    pair, other = draw_projections(7, 3, 40, 24), draw_projections(7, 4, 40, 24)
    draw_projections.cache_clear()
    for i, again in enumerate(draw_projections(7, 3, 40, 24)):
        np.testing.assert_array_equal(again, pair[i])
        assert np.abs(again - other[i]).max() > 0.1
    # A and B are not the same numbers either.
    a, b = pair
    assert np.abs(np.corrcoef(a[:24].ravel(), b.T.ravel())[0, 1]) < 0.3


def test_vera_sites_share_one_pair():
    """Sites take slices of the largest pair, with a scale of A of their own: √(6 / in), where peft has the largest."""
    a, b = draw_projections(7, 0, 40, 40)
    narrow_a, narrow_b = draw_projections(7, 0, 24, 24)
    np.testing.assert_allclose(narrow_a, a[:24] * (40 / 24) ** 0.5, rtol=1e-6)
    np.testing.assert_array_equal(narrow_b, b[:, :24])
