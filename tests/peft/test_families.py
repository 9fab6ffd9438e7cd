"""Every method over every family of language models, on a small random model; a new family enters by its record."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.data.batching.packing import pack, packed_rows
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.models.encoders.base import Encoder, families
from llm4rec_jax.peft import METHODS, create, forward
from llm4rec_jax.peft.sites import sites
from tests.helpers.small import moved, named

MASK = np.arange(6) < np.array([6, 3, 1])[:, None]
IDS = np.random.default_rng(0).integers(3, 40, MASK.shape) * MASK
# Fields of `config.json`, under all the names that families give them. Queries have twice the heads of keys, where a
# family lets them.
SMALL = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 24, "type_vocab_size": 2,
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24, "n_inner": 48, "ffn_dim": 48, "word_embed_proj_dim": 32,
    "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "embedding_size": 32,
    "local_attention": 4, "d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 6, "d_ff": 48,
    "relative_attention": True, "pos_att_type": "c2p|p2c", "position_buckets": 8, "norm_rel_ebd": "layer_norm",
    "position_biased_input": False, "conv_kernel_size": 3,
    "hidden_act": "gelu", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "adalora": {"init_rank": 4, "rank": 2, "alpha": 100.0},
    "compacter": {"n": 2, "reduction": 2},
    "galore": {"rank": 4},
    "houlsby": {"reduction": 4},
    "k_adapter": {"width": 8, "heads": 2, "blocks": 1},
    "last_k": {"k": 1},
    "oft": {"block": 8},
    "parallel": {"reduction": 4},
    "pfeiffer": {"reduction": 4},
    "prefix": {"length": 3},
    "prompt": {"length": 3},
    "side": {"width": 4},
    "vera": {"rank": 6},
}
REPRESENTATIVE = {"bert", "gpt2", "llama"}
"""Families that meet every method in each run: an encoder, fused matrices, and grouped queries with gates."""
NOT_THE_IDENTITY = {"prefix", "prompt"}
"""Methods that change the function from the start."""


class Model(NamedTuple):
    """A small random model.

    Attributes:
      encoder, params: The model.
      apply: Compiled function from parameters to the states of real tokens.
    """

    encoder: Encoder
    params: dict[str, Any]
    apply: Callable[[Any], np.ndarray]


def draw(model_type: str) -> Model:
    """A small model of a family, without dropout, whose weights are all random."""
    config = families()[model_type].config_from_hf({"model_type": model_type, **SMALL}).with_dropout(0.0)
    encoder = families()[model_type].build(config)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), IDS, MASK)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0.0, 0.2, a.shape), a.dtype), shapes)
    run = jax.jit(lambda params: encoder.apply({"params": params}, IDS, MASK))
    return Model(encoder, params, lambda params: np.asarray(run(params))[MASK])


# A folder of both towers of CLIP has the same text model.
FAMILIES = sorted(set(families()) - {"clip"})


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> Model:
    return draw(request.param)


def matrix() -> list[Any]:
    """Every method with every family. A short run has every fifth pair of families that are not representative."""
    pairs = []
    for row, family in enumerate(FAMILIES):
        for column, name in enumerate(sorted(METHODS)):
            short = family in REPRESENTATIVE or (row + column) % 5 == 0
            marks = () if short else pytest.mark.long
            pairs.append(pytest.param(family, name, id=f"{family}-{name}", marks=marks))
    return pairs


@pytest.mark.parametrize(("model", "name"), matrix(), indirect=["model"])
def test_method(model, name):
    method = create(name, {name: OPTIONS.get(name, {})})
    if name == "bitfit" and not sites(model.params, "bias"):
        with pytest.raises(ValueError, match="nothing here has a bias, as in most decoders: choose"):
            method.init(jax.random.key(0), model.params)
        return
    start = method.init(jax.random.key(0), model.params)
    base = model.apply(model.params)
    weights = np.random.default_rng(1).normal(size=(*MASK.shape, base.shape[-1])).astype(np.float32) * MASK[..., None]

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(delta):
        states = forward(model.encoder, method, model.params, delta, IDS, MASK)
        return (states * weights).sum() + method.penalty(delta), states

    (_, at_start), _ = loss(start)
    scale = np.abs(base).max()
    assert np.isfinite(base).all()
    if name not in NOT_THE_IDENTITY:
        np.testing.assert_allclose(at_start[MASK], base, rtol=0, atol=2e-3 * scale)

    delta = moved(start, 1)
    (_, states), grads = loss(delta)
    changed = np.asarray(states)[MASK]
    for path, grad in named(grads).items():
        # A bias of keys moves all scores of a row alike, without positions in between.
        assert np.isfinite(grad).all(), path
        assert path.endswith("key/bias") or np.abs(grad).max() > 0, path
    if start:
        assert np.abs(changed - base).max() > 1e-3 * scale
    if method.merge is not None:
        merged = method.merge(model.params, delta)
        assert jax.tree.structure(merged) == jax.tree.structure(model.params)
        np.testing.assert_allclose(model.apply(merged), changed, rtol=0, atol=1e-4 * np.abs(changed).max())


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_padding_changes_nothing(model, name):
    """Every token attends to the prefix or prompt, and no token to padding."""
    method = create(name, {name: OPTIONS[name]})
    delta = moved(method.init(jax.random.key(0), model.params), 1)
    short, padded = (
        jax.jit(lambda delta, n=n: forward(model.encoder, method, model.params, delta, IDS[1:2, :n], MASK[1:2, :n]))(
            delta
        )
        for n in (3, 6)
    )
    np.testing.assert_allclose(short, padded[:, :3], rtol=0, atol=1e-4 * np.abs(short).max())


def test_texts_side_by_side_in_rows(model):
    """Texts that share a row have the states that each has alone, with methods that read masks and positions."""
    if getattr(model.encoder.config, "conv_kernel_size", 0):
        with pytest.raises(ValueError, match="packing: the convolution reads over the ends of texts"):
            dataclasses.replace(model.encoder.config, packing=True)
        return
    method = create("prefix+k_adapter", {name: OPTIONS[name] for name in ("prefix", "k_adapter")})
    delta = moved(method.init(jax.random.key(0), model.params), 1)

    @partial(jax.jit, static_argnames="apply")
    def states(ids, mask, apply=None):
        return forward(model.encoder, method, model.params, delta, ids, mask, apply=apply)

    packing = pack(MASK.sum(1), 11)
    ids, texts = packed_rows(Tokens(IDS, MASK.sum(1)), packing)
    assert ids.shape == (1, 11)
    alone, packed = states(IDS, MASK), states(ids, texts, apply="packed")
    for text, (row, start, n) in enumerate(zip(packing.row, packing.start, MASK.sum(1), strict=True)):
        np.testing.assert_allclose(
            packed[row, start : start + n], alone[text, :n], rtol=0, atol=2e-6 * np.abs(alone).max()
        )


def test_prefixes_are_as_wide_as_keys(model):
    delta = create("prefix").init(jax.random.key(0), model.params)
    linear = sites(model.params, "kernel")
    widths = {site: linear[f"{site}/key"]["kernel"].shape[1] for site in delta}
    assert {site: (a["key"].shape, a["value"].shape) for site, a in delta.items()} == {
        site: ((30, width), (30, width)) for site, width in widths.items()
    }


def test_names_of_modules(model):
    """The modules that peft adapts by default exist in the family."""
    family = model.encoder.family
    names = huggingface.names_of(family)
    modules = {names.module(site) for site in sites(model.params, "kernel")}
    for target in family.target_modules:
        assert any(module.endswith(f".{target}") for module in modules), target
