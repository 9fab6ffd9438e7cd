"""Scoring heads against numpy; every head's fast form against its broadcast one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.models.heads import HEADS, Head

B, N, D = 3, 5, 4
RNG = np.random.default_rng(0)
P, C = RNG.normal(size=(B, D)).astype(np.float32), RNG.normal(size=(N, D)).astype(np.float32)
PAIRS = np.concatenate(np.broadcast_arrays(P[:, None], C[None]), axis=-1)

every_head = pytest.mark.parametrize("name", sorted(HEADS))


def build(name: str, **options):
    module = HEADS.build(name, **options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), P[:1], C[:1]).get("params", {})
    rng = np.random.default_rng(1)
    return module, {"params": jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)}


def score(name: str, profile, context, **options) -> np.ndarray:
    module, params = build(name, **options)
    return np.asarray(module.apply(params, profile, context))


def arrays(params) -> dict[str, np.ndarray]:
    return {
        "/".join(key.key for key in path): np.asarray(a)
        for path, a in jax.tree_util.tree_leaves_with_path(params["params"])
    }


@every_head
def test_pairs_are_the_broadcast_scores(name):
    module, params = build(name)
    pairs = module.apply(params, P, C, method="score_matrix")
    assert pairs.shape == (B, N)
    one_by_one = [[module.apply(params, p, c) for c in C] for p in P]
    np.testing.assert_allclose(pairs, np.array(one_by_one), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(score(name, P[:, None], C[None]), pairs, rtol=1e-4, atol=1e-5)
    # A head that gave every pair alike would pass the above.
    assert np.ptp(pairs, axis=0).min() > 1e-3
    assert np.ptp(pairs, axis=1).min() > 1e-3


@every_head
def test_profiles_at_every_position_against_candidates(name):
    rng = np.random.default_rng(2)
    user_embeddings, item_embeddings = rng.normal(size=(2, 6, 1, D)), rng.normal(size=(2, 6, 3, D))
    scores = score(name, user_embeddings, item_embeddings)
    assert scores.shape == (2, 6, 3)
    np.testing.assert_allclose(
        scores[1, 4, 2], score(name, user_embeddings[1, 4, 0], item_embeddings[1, 4, 2]), rtol=1e-4, atol=1e-5
    )


def test_dot():
    assert score("dot", np.array([1.0, 2.0]), np.array([3.0, -1.0])) == 1.0
    np.testing.assert_allclose(score("dot", P[:, None], C), P @ C.T, atol=1e-6)


def test_cosine():
    assert score("cosine", np.array([2.0, 0.0]), np.array([3.0, 3.0])) == pytest.approx(20 / 2**0.5, rel=1e-6)
    assert score("cosine", np.array([2.0, 1.0]), np.array([-4.0, -2.0]), temperature=0.5) == pytest.approx(-2.0)
    cos = P @ C.T / np.linalg.norm(P, axis=1)[:, None] / np.linalg.norm(C, axis=1)
    np.testing.assert_allclose(score("cosine", P[:, None], C, temperature=0.1), cos / 0.1, rtol=1e-5)


@pytest.mark.parametrize("zero", [(0,), (1,), (0, 1)])
def test_cosine_of_zeros_is_zero_with_finite_gradients(zero):
    vectors = [np.zeros(D) if i in zero else v for i, v in enumerate((P[0], C[0]))]
    module = HEADS.build("cosine")
    for method in ("__call__", "score_matrix"):
        args = vectors if method == "__call__" else [v[None] for v in vectors]
        value, grads = jax.value_and_grad(lambda *a, m=method: module.apply({}, *a, method=m).sum(), (0, 1))(*args)
        assert value == 0.0
        assert np.isfinite(grads).all()


def test_linear_is_one_layer_on_the_concatenation():
    _, params = build("linear")
    a = arrays(params)
    assert {name: x.shape for name, x in a.items()} == {
        "profile/kernel": (D, 1), "profile/bias": (1,), "context/kernel": (D, 1),
    }  # fmt: skip
    w = np.concatenate([a["profile/kernel"], a["context/kernel"]])
    np.testing.assert_allclose(score("linear", P[:, None], C), (PAIRS @ w + a["profile/bias"])[..., 0], atol=1e-5)


def test_mlp_is_one_hidden_layer_on_the_concatenation():
    _, params = build("mlp", hidden=6)
    a = arrays(params)
    w = np.concatenate([a["profile/kernel"], a["context/kernel"]])
    assert w.shape == (2 * D, 6)
    hidden = np.maximum(PAIRS @ w + a["profile/bias"], 0)
    want = (hidden @ a["output/kernel"] + a["output/bias"])[..., 0]
    np.testing.assert_allclose(score("mlp", P[:, None], C, hidden=6), want, atol=1e-5)
    assert sum(x.size for x in a.values()) == 2 * D * 6 + 6 + 6 + 1


def test_bilinear():
    _, params = build("bilinear")
    np.testing.assert_allclose(score("bilinear", P[:, None], C), P @ arrays(params)["weight"] @ C.T, atol=1e-5)
    start = HEADS.build("bilinear").init(jax.random.key(0), P[:1], C[:1])["params"]["weight"]
    np.testing.assert_array_equal(start, np.eye(D))


@every_head
def test_gradients_are_finite_and_reach_every_parameter(name):
    module, params = build(name)
    grads = jax.grad(lambda p: jnp.square(module.apply(p, P, C, method="score_matrix")).sum())(params)
    for g in jax.tree.leaves(grads):
        assert np.isfinite(g).all()
        assert np.abs(g).max() > 0


def test_a_head_of_ones_own_is_one_method():
    class Euclidean(Head):
        def __call__(self, user: jax.Array, item: jax.Array) -> jax.Array:
            return -jnp.square(user - item).sum(-1)

    scores = Euclidean().apply({}, P, C, method="score_matrix")
    np.testing.assert_allclose(scores, -((P[:, None] - C) ** 2).sum(-1), rtol=1e-5)
