"""Layers of columns and fusions of features, beside transcriptions of their papers' equations."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.data.features.columns import Column, FittedFeature
from llm4rec_jax.models.items.columns import COLUMN_LAYERS
from llm4rec_jax.models.items.fusion import FUSIONS
from llm4rec_jax.models.items.item_encoder import FeatureSet
from llm4rec_jax.models.recommender import init, recommender

RNG = np.random.default_rng(0)
D, U = 4, 5
PARTS = [RNG.normal(size=(U, D)).astype(np.float32) for _ in range(3)]
OF_VECTORS = [name for name, fusion in FUSIONS.items() if not fusion.reads_states]
PRESENT = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0], [0, 1, 1]], bool)


def number(values, missing=None) -> Column:
    values = np.asarray(values, np.float32)
    flags = np.zeros(len(values)) if missing is None else missing
    return Column(np.stack([values, flags], axis=1).astype(np.float32), np.ones(len(values), bool))


def drawn(module, *args):
    params = module.init(jax.random.key(0), *args)
    return jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), params)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_piecewise_linear_encoding_is_the_paper_s():
    edges = (-1.0, -0.2, 0.3, 2.0)
    x = np.array([-3.0, -1.0, -0.6, 0.0, 0.3, 1.9, 5.0], np.float32)
    want = np.zeros((len(x), 3))
    for row, value in enumerate(x):
        for t, (low, high) in enumerate(pairwise(edges)):
            if value < low and t > 0:
                continue
            want[row, t] = 1.0 if value >= high and t < 2 else (value - low) / (high - low)
    module = COLUMN_LAYERS.build("piecewise_linear", width=3, edges=edges)
    eye = {"output": {"kernel": jnp.eye(4, 3), "bias": jnp.zeros(3)}}
    np.testing.assert_allclose(module.apply({"params": eye}, number(x)), want, atol=1e-6)
    slope = jax.grad(lambda v: module.apply({"params": eye}, number([0.0])._replace(values=v)).sum())
    np.testing.assert_allclose(slope(jnp.array([[0.0, 0.0]]))[0, 0], 1 / 0.5, rtol=1e-6)


def test_periodic_embedding_is_the_paper_s():
    module = COLUMN_LAYERS.build("periodic", width=D, frequencies=3)
    column = number([0.5, -1.0, 0.0], [0, 0, 1])
    params = drawn(module, column)
    p = params["params"]
    angle = 2 * np.pi * column.values[:, :1] * p["frequencies"]
    encoded = np.concatenate([np.cos(angle), np.sin(angle)], axis=1) * np.array([[1], [1], [0]])
    encoded = np.concatenate([encoded, [[0], [0], [1]]], axis=1)
    want = np.maximum(encoded @ p["output"]["kernel"] + p["output"]["bias"], 0)
    np.testing.assert_allclose(module.apply(params, column), want, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "piecewise_linear", "periodic"])
def test_a_missing_number_has_a_vector_of_its_own(name):
    options = {"edges": (-1.0, 0.0, 1.0)} if name == "piecewise_linear" else {}
    module = COLUMN_LAYERS.build(name, width=D, **options)
    column = number([0.0, 0.0], [0, 1])
    present, missing = module.apply(drawn(module, column), column)
    assert np.abs(present - missing).max() > 0.01


def test_a_bag_is_the_mean_of_its_categories():
    module = COLUMN_LAYERS.build("bag", width=D, size=6)
    column = Column(np.array([[1, 3, -1], [5, -1, -1], [-1, -1, -1], [0, 1, 2]], np.int32), np.ones(4, bool))
    params = drawn(module, column)
    table = np.asarray(params["params"]["embedding"])
    want = [table[[1, 3]].mean(0), table[5], np.zeros(D), table[:3].mean(0)]
    np.testing.assert_allclose(module.apply(params, column), np.stack(want), atol=1e-6)


def transcribed(name, p, present):
    """Fusions in numpy, a row at a time, from the features that the row has."""
    out = np.zeros((U, D))
    for row in range(U):
        there = [m for m in range(3) if present[row, m]]
        x = {m: PARTS[m][row] for m in there}
        if name == "sum":
            out[row] = sum((x[m] for m in there), np.zeros(D))
        elif name == "concat":
            whole = np.concatenate([x.get(m, p["missing"][m] if "missing" in p else None) for m in range(3)])
            hidden = np.asarray(jax.nn.gelu(whole @ p["hidden"]["kernel"] + p["hidden"]["bias"]))
            out[row] = hidden @ p["output"]["kernel"] + p["output"]["bias"]
        elif name == "gated":
            for m in there:
                blocks = {k: p[f"gate_{m}"]["kernel"][k * D : (k + 1) * D] for k in there}
                gate = sigmoid(sum(x[k] @ blocks[k] for k in there) + p[f"gate_{m}"]["bias"])
                out[row] += gate * np.tanh(x[m] @ p[f"hidden_{m}"]["kernel"] + p[f"hidden_{m}"]["bias"])
        elif there:
            scores = [np.tanh(x[m] @ p["hidden"]["kernel"] + p["bias"][m]) @ p["query"]["kernel"][:, 0] for m in there]
            weights = np.exp(scores) / np.exp(scores).sum()
            out[row] = sum(w * x[m] for w, m in zip(weights, there, strict=True))
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", OF_VECTORS)
def test_fusions_are_their_transcriptions(name, masked):
    module = FUSIONS.build(name, width=D)
    present = PRESENT if masked else None
    params = drawn(module, PARTS, present)
    want = transcribed(name, params.get("params", {}), PRESENT if masked else np.ones_like(PRESENT))
    np.testing.assert_allclose(module.apply(params, PARTS, present), want, atol=1e-5)
    if masked:
        # The values of a masked feature reach neither the embedding nor a gradient.
        def total(parts):
            return (module.apply(params, parts, present) * jnp.arange(1.0, D + 1)).sum()

        gradients = jax.grad(total)(PARTS)
        for m, gradient in enumerate(gradients):
            assert not np.asarray(gradient)[~PRESENT[:, m]].any()
            assert np.abs(np.asarray(gradient)[PRESENT[:, m]]).max() > 0


def features(**options) -> FeatureSet:
    brand = FittedFeature(Column(np.array([[0], [1], [2], [-1]], np.int32), np.arange(4) < 3), "bag", {"size": 3})
    year = FittedFeature(number([0.5, 1.0, 2.0, 3.0]), "linear")
    return FeatureSet({"brand": brand, "year": year}, {"age": year}, **options)


@pytest.mark.parametrize("fusion", OF_VECTORS)
def test_features_stand_beside_ids_and_in_the_profile(fusion):
    model = recommender(num_items=4, users="mean", width=D, features=features(fusion=fusion, user_fusion=fusion))
    params = init(model, jax.random.key(0))
    assert {"ids", "feature_brand", "feature_year", "profile"} <= set(params)
    assert "age" in params["profile"]


def test_features_need_neither_ids_nor_text():
    model = recommender(users="mean", width=D, features=features())
    assert set(init(model, jax.random.key(0))) == {"feature_brand", "feature_year", "profile"}


def test_dropout_masks_features_but_never_all_of_a_row():
    model = recommender(users="mean", width=D, features=features(dropout=0.5))
    params, size = {"params": init(model, jax.random.key(0))}, 4000
    inputs = {name: feature.column for name, feature in features().items.items()}
    many = jax.tree.map(lambda a: np.tile(a, (size, *[1] * (a.ndim - 1))), inputs)
    made = model.items.apply(params, many, rngs={"dropout": jax.random.key(1)})
    absent = {name: column._replace(present=np.zeros(4, bool)) for name, column in inputs.items()}
    kept = {
        name: np.abs(made.reshape(size, 4, D) - model.items.apply(params, inputs | given)).max(-1) < 1e-6
        for name, given in {"both": {}, "brand": {"year": absent["year"]}, "year": {"brand": absent["brand"]}}.items()
    }
    # Rows with both: 1/4 drop none, 1/4 would drop all and keep all, 1/4 drop either. The last has no brand.
    for name, share in {"both": 0.5, "brand": 0.25, "year": 0.25}.items():
        np.testing.assert_allclose(kept[name][:, :3].mean(), share, atol=0.02)
    assert kept["year"][:, 3].all()
