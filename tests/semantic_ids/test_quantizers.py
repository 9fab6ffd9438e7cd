"""Quantizers against scikit-learn, scipy and their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from llm4rec_jax.semantic_ids import QUANTIZERS, collisions
from llm4rec_jax.semantic_ids.balance import balanced_assignment, sinkhorn
from llm4rec_jax.semantic_ids.kmeans import residual_clusters, squared_distances
from llm4rec_jax.semantic_ids.rq_vae import RqVae, RqVaeOptions, quantize, restarted

RNG = np.random.default_rng(0)
# Clusters of clusters: two levels of codes explain most of it.
VECTORS = (
    5.0 * RNG.normal(size=(6, 8))[RNG.integers(0, 6, 300)]
    + RNG.normal(size=(6, 8))[RNG.integers(0, 6, 300)]
    + 0.05 * RNG.normal(size=(300, 8))
)


def test_each_level_is_scikit_learns_k_means_of_what_is_left():
    codes, centres, inertias = residual_clusters(VECTORS, 3, 6, seed=4)
    left = VECTORS
    for level in range(3):
        fitted = KMeans(6, n_init=1, random_state=4 + level).fit(left)
        np.testing.assert_allclose(inertias[level], fitted.inertia_, rtol=1e-9)
        left = left - centres[level][codes[:, level]]
    np.testing.assert_allclose(VECTORS - left, sum(centres[i][codes[:, i]] for i in range(3)), atol=1e-12)
    assert inertias[0] > 4 * inertias[1] > 0
    nearest = squared_distances(VECTORS, centres[0]).argmin(axis=1)
    assert (nearest == codes[:, 0]).mean() == 1.0


def test_balanced_clusters_differ_by_one_and_cost_little_more_than_the_optimum():
    costs = squared_distances(VECTORS, RNG.normal(size=(7, 8)) * 4)
    columns = balanced_assignment(costs)
    capacity = -(-300 // 7)
    assert np.bincount(columns, minlength=7).max() <= capacity
    rows, places = linear_sum_assignment(np.repeat(costs, capacity, axis=1))
    best = costs[rows, places // capacity].sum()
    assert best <= costs[np.arange(300), columns].sum() <= 1.02 * best
    assert costs.min(axis=1).sum() < 0.9 * best  # without balance it would be another assignment
    ids = QUANTIZERS["constrained_kmeans"](VECTORS, levels=2, codes=7).ids
    for level in range(2):
        assert np.bincount(ids.codes[:, level], minlength=7).max() <= capacity


def test_sinkhorn_has_the_margins_and_the_form_of_the_optimum():
    costs = RNG.uniform(size=(12, 4))
    plan = sinkhorn(costs, 0.3, 500)
    np.testing.assert_allclose(plan.sum(axis=0), 3.0, rtol=1e-6)
    np.testing.assert_allclose(plan.sum(axis=1), 1.0, rtol=1e-6)
    # log plan = -cost / ε + row + column: twice centred, only the cost is left.
    epsilon = 0.3 * (costs - costs.min(axis=1, keepdims=True)).mean()

    def centred(x):
        return x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()

    np.testing.assert_allclose(centred(np.log(plan)), -centred(costs) / epsilon, atol=1e-8)
    np.testing.assert_allclose(sinkhorn(jnp.asarray(costs), 0.3, 500), plan, rtol=1e-3)


def test_residual_quantization_takes_the_nearest_code_of_each_level_and_passes_gradients_through():
    options = RqVaeOptions(hidden=(5,), width=3)
    model = RqVae(4, 2, 6, options)
    x = jnp.asarray(RNG.normal(size=(9, 4)), jnp.float32)
    params = model.init(jax.random.key(0), x)["params"]
    params = {**params, "codebooks": jnp.asarray(RNG.normal(size=(2, 6, 3)), jnp.float32)}

    def loss(params):
        return model.apply({"params": params}, x)[0]

    def reference(params):
        """The published loss, with the codes found one by one."""
        latent = model.apply({"params": params}, x, method="encode")
        held, books = jax.lax.stop_gradient, params["codebooks"]
        total, rest, chosen = 0.0, latent, 0.0
        for table in books:
            code = table[jnp.linalg.norm(rest[:, None] - table, axis=-1).argmin(1)]
            total = total + ((held(rest) - code) ** 2).sum(-1).mean() + 0.25 * ((rest - held(code)) ** 2).sum(-1).mean()
            rest, chosen = rest - held(code), chosen + held(code)
        decoded = model.apply({"params": params}, latent + held(chosen - latent), method="decode")
        return ((decoded - x) ** 2).sum(-1).mean() + total

    value, grads = jax.value_and_grad(loss)(params)
    assert value == pytest.approx(float(reference(params)), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, jax.grad(reference)(params)
    )
    assert all(jnp.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(grads["encoder_0"]))
    balanced = np.asarray(quantize(x[:, :3], params["codebooks"], 0.01)[0])
    assert (
        np.bincount(balanced[:, 0], minlength=6).max()
        <= np.bincount(quantize(x[:, :3], params["codebooks"])[0][:, 0]).max()
    )


def test_codes_that_nothing_took_move_to_residuals():
    books = jnp.arange(12.0).reshape(2, 3, 2)
    taken, residuals = jnp.array([[0, 2], [1, 2]]), 100 + jnp.arange(8.0).reshape(2, 2, 2)
    moved = np.asarray(restarted(books, taken, residuals, jax.random.key(0)))
    np.testing.assert_array_equal(moved[0, :2], books[0, :2])
    np.testing.assert_array_equal(moved[1, 2], books[1, 2])
    for level, code in ((0, 2), (1, 0), (1, 1)):
        assert moved[level, code].tolist() in np.asarray(residuals[:, level]).tolist()


@pytest.mark.parametrize("sinkhorn", [0.0, 0.05])
def test_an_rq_vae_learns_to_decode(sinkhorn):
    options = {
        "hidden": (32,),
        "width": 8,
        "epochs": 30,
        "batch_size": 100,
        "learning_rate": 5e-3,
        "sinkhorn": sinkhorn,
    }
    ids, left = QUANTIZERS["rq_vae"](VECTORS, levels=2, codes=12, **options)
    assert ids.codes.shape == (300, 2)
    assert 1.0 > left[0] > left[1]
    assert left[1] < 0.2
    assert collisions(ids).ids >= 20
    again = QUANTIZERS["rq_vae"](VECTORS, levels=2, codes=12, **options)
    assert again.ids.fingerprint == ids.fingerprint


def test_wrong_sizes_and_options_are_named():
    with pytest.raises(ValueError, match="codes=301 for 300 items"):
        QUANTIZERS["residual_kmeans"](VECTORS, codes=301)
    with pytest.raises(ValueError, match="NaN"):
        QUANTIZERS["residual_kmeans"](np.full((4, 2), np.nan), codes=2)
    with pytest.raises(ValueError, match=r"rq_vae\.width is 0"):
        QUANTIZERS["rq_vae"](VECTORS, width=0)
