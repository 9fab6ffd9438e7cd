"""The fusion `iisan` beside a transcription of the paper's equations in torch, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm4rec_jax.data.features.columns import Column, FittedFeature
from llm4rec_jax.models.items.fusion import FUSIONS, States
from llm4rec_jax.models.items.item_encoder import FeatureSet
from llm4rec_jax.models.recommender import init, recommender

RNG = np.random.default_rng(0)
U, K, W, D, T = 4, 3, 6, 5, 0.1
TEXT, IMAGE = (RNG.normal(size=(U, K, W)).astype(np.float32) for _ in range(2))
IDS = RNG.normal(size=(U, D)).astype(np.float32)
# Ids, text, image: both, no image, no text, neither.
PRESENT = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1], [1, 0, 0]], bool)


def drawn(module, *args):
    params = module.init(jax.random.key(0), *args)
    return jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape), params)


def block(p, x):
    return x + torch.nn.functional.gelu(x @ p["down"] + p["down_bias"]) @ p["up"] + p["up_bias"]


def transcribed(p, ids, states, present):
    """Embedding of each row in turn, from the modalities that it has."""
    rows = []
    for row in range(U):
        made = [ids[row] if present[row, 0] else p["missing_0"]]
        there = [m for m in (1, 2) if present[row, m]]
        h = {m: states[m - 1][row] for m in (1, 2)}
        if "reduce_1" in p:
            h = {m: torch.stack([h[m][k] @ p[f"reduce_{m}"][k] for k in range(K)]) for m in (1, 2)}
        for m in (1, 2):
            if m not in there:
                made.append(p[f"missing_{m}"])
                continue
            s = block(p[f"within_{m}"]["block_0"], h[m][0])
            for k in range(1, K):
                mu = torch.sigmoid(p[f"within_{m}"]["gates"][k - 1] / T)
                s = block(p[f"within_{m}"][f"block_{k}"], mu * s + (1 - mu) * h[m][k])
            made.append(s)
        z = torch.zeros_like(h[1][0])
        for k in range(K):
            beta = torch.sigmoid(p["across"]["gates"][k, 0] / T)
            share = {1: beta, 2: 1 - beta} if len(there) == 2 else dict.fromkeys(there, 1.0)
            z = block(p["across"][f"block_{k}"], z + sum(share[m] * h[m][k] for m in there))
        rows.append(torch.cat([*made, z]) @ p["output"]["kernel"] + p["output"]["bias"])
    return torch.stack(rows)


@pytest.mark.parametrize(("masked", "side_width"), [(False, None), (True, None), (True, 3)])
def test_the_fusion_is_the_paper_s(masked, side_width):
    module = FUSIONS.build("iisan", width=D, hidden=2, side_width=side_width)
    image = IMAGE if side_width is None else IMAGE[..., :4]
    present = PRESENT if masked else None
    inputs = (IDS, TEXT, image)

    def apply(params, ids, text, image):
        return module.apply(params, [ids, States(text), States(image)], present)

    params = drawn(module, [IDS, States(TEXT), States(image)], present)
    weights = RNG.normal(size=(U, D)).astype(np.float32)
    made = apply(params, *inputs)
    gradients = jax.grad(lambda *args: (apply(*args) * weights).sum(), argnums=(0, 1, 2, 3))(params, *inputs)

    leaves, tree = jax.tree.flatten(params["params"])
    tensors = [torch.tensor(np.array(leaf), requires_grad=True) for leaf in leaves]
    ids, *states = (torch.tensor(x, requires_grad=True) for x in inputs)
    want = transcribed(jax.tree.unflatten(tree, tensors), ids, states, PRESENT if masked else np.ones_like(PRESENT))
    np.testing.assert_allclose(made, want.detach(), atol=1e-5)
    (want * torch.tensor(weights)).sum().backward()
    for got, tensor in zip(jax.tree.leaves(gradients), [*tensors, ids, *states], strict=True):
        expected = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        np.testing.assert_allclose(got, expected, atol=1e-4)
    for m, gradient in enumerate(gradients[1:]):
        if masked:
            assert not np.asarray(gradient)[~PRESENT[:, m]].any()


def test_one_modality_has_no_network_across():
    module = FUSIONS.build("iisan", width=D)
    params = module.init(jax.random.key(0), [States(TEXT)], None)["params"]
    assert set(params) == {"within_0", "output"}


def test_states_that_do_not_fit_are_refused():
    fusion = FUSIONS.build("iisan", width=D)
    for other, words in (
        (IMAGE[:, :2], "2 and 3 hidden states"),
        (IMAGE[..., :4], "widths 4 and 6; give .* side_width"),
    ):
        with pytest.raises(ValueError, match=words):
            fusion.init(jax.random.key(0), [States(TEXT), States(other)], None)


def stack(values, present=None) -> FittedFeature:
    return FittedFeature(Column(values, np.ones(U, bool) if present is None else present), "states")


def test_features_and_fusion_fit_each_other():
    states = {"title": stack(TEXT)}
    with pytest.raises(ValueError, match=r"'gated' reads one vector of a feature, and title has .* the fusion iisan"):
        recommender(width=D, features=FeatureSet(states, fusion="gated"))
    with pytest.raises(ValueError, match=r"'iisan' reads hidden states, and none of the features"):
        recommender(num_items=U, width=D, features=FeatureSet({}, fusion="iisan"))


def test_a_recommender_of_ids_and_states_takes_gradients_at_items_that_lack_one():
    held = {"title": stack(TEXT, PRESENT[:, 1]), "picture": stack(IMAGE[..., :4], PRESENT[:, 2])}
    features = FeatureSet(held, fusion="iisan", fusion_options={"side_width": 4, "hidden": 2}, dropout=0.3)
    model = recommender(num_items=U, users="mean", width=D, features=features)
    params = init(model, jax.random.key(0))
    assert {"within_1", "within_2", "across", "reduce_1", "missing_2"} <= set(params["fusion"])
    inputs = {"ids": jnp.arange(U)} | {name: feature.column for name, feature in held.items()}

    def total(params):
        made = model.items.apply({"params": params}, inputs, rngs={"dropout": jax.random.key(1)})
        return (made**2).sum()

    gradients = jax.grad(total)(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients["fusion"]["reduce_2"]).max() > 0
