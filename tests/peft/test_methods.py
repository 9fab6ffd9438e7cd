"""What every registered method must do. A new method joins by a row in `ROWS`."""

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec
from scipy.special import erf

from llm4rec_jax.models import pretrained
from llm4rec_jax.models.bert import Bert, BertConfig
from llm4rec_jax.peft import METHODS, chain, count, create, forward
from llm4rec_jax.sharding import BERT_RULES, make_mesh, path_name, place
from tests.conftest import random_bert

V, P, T, D, F, N, HEADS = 24, 12, 2, 16, 32, 2, 4
CONFIG = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": N,
    "num_attention_heads": HEADS,
    "intermediate_size": F,
    "max_position_embeddings": P,
    "type_vocab_size": T,
}
MASK = np.arange(5) < np.array([5, 3, 1, 4])[:, None]
IDS = np.random.default_rng(0).integers(1, V, MASK.shape) * MASK
WEIGHTS = np.random.default_rng(1).normal(size=(*MASK.shape, D)).astype(np.float32) * MASK[..., None]


def numpy_bert(params: dict[str, Any], prefixes: dict[str, Any], prompt: np.ndarray | None = None) -> np.ndarray:
    """BERT in numpy with `prefixes` {site: {"key": [n, D], "value": [n, D]}} in front of keys and values.

    Or with a prompt [n, D] in front of the embeddings, whose states are dropped at the end.
    """

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    e = params["embeddings"]
    tables = [np.asarray(e[name]["embedding"], np.float64) for name in ("word", "position", "token_type")]
    prompt = np.zeros((0, D)) if prompt is None else prompt
    nothing = {"key": np.zeros((0, D)), "value": np.zeros((0, D))}
    out = np.zeros((*IDS.shape, D))
    for row, (ids, mask) in enumerate(zip(IDS, MASK, strict=True)):
        words = np.concatenate([prompt, tables[0][ids]])
        mask = np.concatenate([np.ones(len(prompt), bool), mask])
        x = norm(words + tables[1][: len(words)] + tables[2][0], e["norm"])
        for i in range(N):
            p = params[f"layer_{i}"]
            a, prefix = p["attention"], prefixes.get(f"layer_{i}/attention", nothing)
            q, k, v = (dense(x, a[name]) for name in ("query", "key", "value"))
            k, v = np.concatenate([prefix["key"], k[mask]]), np.concatenate([prefix["value"], v[mask]])
            mixed = []
            for h in np.split(np.arange(D), HEADS):
                w = np.exp(q[:, h] @ k[:, h].T / (D / HEADS) ** 0.5)
                mixed.append(w / w.sum(-1, keepdims=True) @ v[:, h])
            x = norm(x + dense(np.concatenate(mixed, -1), a["output"]), p["attention_norm"])
            up = dense(x, p["ffn"]["up"])
            x = norm(x + dense(up * (1 + erf(up / 2**0.5)) / 2, p["ffn"]["down"]), p["ffn_norm"])
        out[row] = x[len(prompt) :]
    return out


def prompted(params: dict[str, Any], delta: dict[str, Any]) -> np.ndarray:
    return numpy_bert(params, {}, np.asarray(delta["embeddings/word"]["prompt"]))


class Row(NamedTuple):
    """What the table says of a method.

    Attributes:
      count: trainable scalars, as the paper's arithmetic has them.
      options: keyword arguments of the method.
      start: (params, delta) -> states at the start; None: those of the module itself.
      atol: how near the states at the start are.
    """

    count: int
    options: Mapping[str, Any] = MappingProxyType({})
    start: Callable[..., np.ndarray] | None = None
    atol: float = 0.0


LAYER = 4 * (D + 1) * D + (D + 1) * F + (F + 1) * D + 4 * D
"""Parameters of a block."""

ROWS = {
    "adalora": Row(N * 2 * 4 * (D + 1 + D), {"init_rank": 4, "rank": 2, "alpha": 100.0}),
    "compacter": Row(2**3 + N * 2 * (2 * 3 * (D + D // 2) + D // 2 + D), {"n": 2, "rank": 3, "reduction": 2}),
    "dora": Row(N * 2 * (3 * (D + D) + D), {"rank": 3, "alpha": 6.0}, atol=2e-6),
    "frozen": Row(0),
    "galore": Row((V + P + T) * D + 2 * D + N * LAYER, {"rank": 4}),
    "ia3": Row(N * (D + D + F)),
    "k_adapter": Row(
        2 * D * D + D + 2 * (8 * D + 8 + 8 * D + D + 4 * 9 * 8 + 9 * 32 + 33 * 8 + 4 * 8),
        {"width": 8, "heads": 2, "blocks": 1},
        atol=1e-6,
    ),
    "last_k": Row(LAYER, {"k": 1}),
    "layernorm": Row(2 * D + N * 4 * D),
    "lora_plus": Row(N * 2 * 3 * (D + D), {"rank": 3, "alpha": 6.0}),
    "oft": Row(N * 2 * (D // 8) * (8 * 7 // 2), {"block": 8}, atol=1e-6),
    "parallel": Row(N * 2 * D * (D // 4), {"reduction": 4}),
    "pfeiffer": Row(N * (2 * D * (D // 4) + D // 4 + D), {"reduction": 4}, atol=1e-4),
    "prompt": Row(3 * D, {"length": 3}, start=prompted, atol=1e-5),
    "side": Row((D + D) * 4 + 1 * (1 + D * 4 + 2 * (4 * 4 + 4)), {"width": 4}),
    "vera": Row(N * 2 * (6 + D), {"rank": 6}),
    "full": Row((V + P + T) * D + 2 * D + N * LAYER),
    "bitfit": Row(D + N * (4 * D + F + D + 2 * D)),
    "lora": Row(N * 2 * 3 * (D + D), {"rank": 3, "alpha": 6.0}),
    "houlsby": Row(N * 2 * (2 * D * (D // 4) + D // 4 + D), {"reduction": 4}, atol=1e-4),
    "prefix": Row(N * 2 * 3 * D, {"length": 3}, start=numpy_bert, atol=1e-5),
}


def test_every_method_has_a_row():
    assert set(ROWS) == set(METHODS)


@pytest.fixture(scope="module")
def params(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("small")
    random_bert(3, **CONFIG).save_pretrained(folder)
    return pretrained.load(folder)[1]


def encoder(**options: Any) -> Bert:
    return Bert(BertConfig(**CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **options))


def objective(method, model=None):
    """(delta, params, ids, mask) -> loss, states."""
    model = model or encoder()

    def loss(delta, params, ids, mask):
        states = forward(model, method, params, delta, ids, mask)
        return (states.astype(jnp.float32) * WEIGHTS).sum() + method.penalty(delta), states

    return loss


def moved(delta, seed: int, by: float = 0.2):
    """The delta with noise on every array, as training might leave it."""
    leaves, structure = jax.tree.flatten(delta)
    rng = np.random.default_rng(seed)
    noisy = [a + jnp.asarray(rng.normal(0.0, by, a.shape), a.dtype) for a in leaves]
    return jax.tree.unflatten(structure, noisy)


def named(tree) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(a) for path, a in jax.tree_util.tree_leaves_with_path(tree)}


def assert_close(ours, want, tolerance: float = 1e-5) -> None:
    """Equal to a share of the largest value of the whole tree: some gradients are zero but for rounding."""
    ours, want = named(ours), named(want)
    assert ours.keys() == want.keys()
    scale = max((np.abs(a).max() for a in want.values()), default=0.0)
    for name, array in want.items():
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=tolerance * max(scale, 1.0), err_msg=name)


@pytest.fixture(scope="module", params=sorted(METHODS))
def case(request, params) -> SimpleNamespace:
    row = ROWS[request.param]
    method = create(request.param, {request.param: row.options})
    start = method.init(jax.random.key(0), params)
    grads = jax.jit(jax.value_and_grad(objective(method), has_aux=True))
    return SimpleNamespace(name=request.param, row=row, method=method, start=start, delta=moved(start, 1), grads=grads)


def states(case, params, delta=None, **options) -> np.ndarray:
    delta = case.delta if delta is None else delta
    return np.asarray(forward(encoder(**options), case.method, params, delta, IDS, MASK))


def test_start(case, params):
    if case.row.start is None:
        want = encoder().apply({"params": params}, IDS, MASK)
    else:
        want = case.row.start(params, case.start)
    np.testing.assert_allclose(states(case, params, case.start)[MASK], want[MASK], rtol=0, atol=case.row.atol)


def test_the_delta_matters(case, params):
    change = np.abs(states(case, params) - states(case, params, case.start))[MASK].max()
    assert change > 0.05 if case.row.count else change == 0


def test_count(case):
    assert count(case.start) == case.row.count
    assert {a.dtype for a in jax.tree.leaves(case.start)} <= {np.dtype(np.float32)}


def test_init_follows_the_key(case, params):
    again = case.method.init(jax.random.key(0), params)
    jax.tree.map(np.testing.assert_array_equal, again, case.start)
    other = named(case.method.init(jax.random.key(1), params))
    arrays = [a for name, a in named(case.start).items() if (a != other[name]).any()]
    # No two sites draw the same numbers.
    assert len({a.tobytes() for a in arrays}) == len(arrays)


def digest(tree) -> str:
    return hashlib.sha256(b"".join(a.tobytes() for a in named(tree).values())).hexdigest()


def idle(name: str) -> bool:
    """A key's bias moves all of a row's scores alike: its gradient is zero but for rounding."""
    return name.endswith("attention/key/bias")


def test_training_moves_every_array_and_nothing_else(case, params):
    before = digest(params)
    tx = case.method.optimizer(optax.adam(1e-2), 3)
    delta, state = case.start, tx.init(case.start)
    start = named(delta)
    still = {name for name in start if not idle(name)}
    for step in range(3):
        _, grads = case.grads(delta, params, IDS, MASK)
        for name, grad in named(grads).items():
            assert np.isfinite(grad).all()
            # At the start LoRA's B = 0 gives A no gradient.
            assert step == 0 or idle(name) or np.abs(grad).max() > 1e-5, name
        updates, state = tx.update(grads, state, delta)
        delta = optax.apply_updates(delta, updates)
        # AdaLoRA may set back to zero what has moved.
        still -= {name for name, array in named(delta).items() if (array != start[name]).any()}
    assert digest(params) == before
    assert not still
    assert jax.tree.structure(delta) == jax.tree.structure(case.start)


def test_merged_equals_unmerged(case, params):
    if case.method.merge is None:
        pytest.skip("nothing to merge into")
    merged = case.method.merge(params, case.delta)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    ours = encoder().apply({"params": merged}, IDS, MASK)
    np.testing.assert_allclose(ours[MASK], states(case, params)[MASK], rtol=0, atol=1e-5)


def test_jit_and_remat_equal_eager(case, params):
    loss = jax.value_and_grad(objective(case.method), has_aux=True)
    (value, out), grads = case.grads(case.delta, params, IDS, MASK)
    (want, plain), want_grads = loss(case.delta, params, IDS, MASK)
    assert_close((value, out, grads), (want, plain, want_grads))
    remat = jax.value_and_grad(objective(case.method, encoder(remat=True)), has_aux=True)
    (value, out), grads = remat(case.delta, params, IDS, MASK)
    assert_close((value, out, grads), (want, plain, want_grads))


def test_bfloat16(case, params):
    model = encoder(compute_dtype="bfloat16")
    (_, out), grads = jax.value_and_grad(objective(case.method, model), has_aux=True)(case.delta, params, IDS, MASK)
    assert out.dtype == jnp.bfloat16
    exact = states(case, params)
    assert np.abs(np.asarray(out, np.float32) - exact)[MASK].max() < 0.1 * np.abs(exact).max()
    for name, grad in named(grads).items():
        assert grad.dtype == np.float32, name
        assert np.isfinite(grad).all(), name


def test_vmap_over_deltas_equals_one_by_one(case, params):
    deltas = [moved(case.start, seed) for seed in range(3)]
    one_by_one = [states(case, params, delta) for delta in deltas]
    if not case.row.count:
        pytest.skip("nothing to stack")
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *deltas)
    together = jax.vmap(lambda delta: forward(encoder(), case.method, params, delta, IDS, MASK))(stacked)
    np.testing.assert_allclose(together, np.stack(one_by_one), rtol=0, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.05


def test_mesh_equals_one_device(case, params):
    mesh = make_mesh(model=2)
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    spread = place(params, mesh, BERT_RULES)
    assert len(spread["layer_0"]["ffn"]["up"]["kernel"].sharding.device_set) == 8
    assert spread["layer_0"]["ffn"]["up"]["kernel"].addressable_shards[0].data.shape == (D, F // 2)
    data = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))
    ours = case.grads(place(case.delta, mesh), spread, *jax.device_put((IDS, MASK), data))
    assert_close(ours, case.grads(case.delta, params, IDS, MASK))


def test_chains_with_another(case, params):
    other = create("bitfit") if case.name == "lora" else create("lora")
    both = chain(case.method, other)
    start = both.init(jax.random.key(0), params)
    assert count(start) == case.row.count + count(start["1"])
    # The other is the identity at its start, in and around this method.
    untouched = {"0": case.delta, "1": start["1"]}
    np.testing.assert_array_equal(forward(encoder(), both, params, untouched, IDS, MASK), states(case, params))
    if case.method.reads_weights:
        with pytest.raises(ValueError, match=f"{case.name} reads the weights"):
            chain(other, case.method)
    else:
        swapped = {"0": start["1"], "1": case.delta}
        reordered = forward(encoder(), chain(other, case.method), params, swapped, IDS, MASK)
        np.testing.assert_array_equal(reordered, states(case, params))
    grads, _ = jax.grad(objective(both), has_aux=True)(moved(start, 2), params, IDS, MASK)
    assert all(idle(name) or np.abs(grad).max() > 1e-5 for name, grad in named(grads).items())
    if case.method.merge is None:
        assert both.merge is None
    else:
        delta = moved(start, 3)
        merged = both.merge(params, delta)
        want = forward(encoder(), both, params, delta, IDS, MASK)
        np.testing.assert_allclose(encoder().apply({"params": merged}, IDS, MASK)[MASK], want[MASK], rtol=0, atol=1e-5)


def test_checkpoint_round_trip(case, tmp_path):
    saved = {"delta": case.delta, "step": jnp.zeros(())}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "delta", saved)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "delta", jax.eval_shape(lambda: saved))["delta"]
    assert jax.tree.structure(restored) == jax.tree.structure(case.delta)
    jax.tree.map(np.testing.assert_array_equal, restored, case.delta)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lora", {"rank": 0}, "rank is 0, must be at least 1"),
        ("lora", {"dropout": 1.0}, r"dropout is 1\.0, must be in \[0, 1\)"),
        ("prefix", {"length": 0}, "length is 0, must be at least 1"),
        ("houlsby", {"reduction": 17}, "reduction 17 leaves nothing of layer_0/attention's width 16"),
        ("lora", {"target": ".*/qeury"}, r"'\.\*/qeury' matches nothing; there are: .*layer_N/attention/query"),
        ("lora", {"target": ".*_norm"}, "matches nothing; there are: .*layer_N/ffn/down$"),
        ("bitfit", {"target": "layer_9/.*"}, "matches nothing; there are: .*layer_N/ffn_norm"),
        ("full", {"target": "nowhere"}, "matches nothing; there are: embeddings/.*layer_N/ffn_norm"),
        ("houlsby", {"target": r"layer_\d+/attention_norm"}, "there are: layer_N/attention, layer_N/ffn$"),
        ("prefix", {"target": r"layer_\d+/ffn"}, "matches nothing; there are: layer_N/attention$"),
    ],
)
def test_impossible_options(params, name, options, message):
    with pytest.raises(ValueError, match=message):
        create(name, {name: options}).init(jax.random.key(0), params)


@pytest.mark.parametrize(
    ("name", "target", "sites"),
    [
        ("lora", r"layer_1/ffn/(up|down)", {"layer_1/ffn/up", "layer_1/ffn/down"}),
        ("lora", r".*/(query|value)", {f"layer_{i}/attention/{n}" for i in range(N) for n in ("query", "value")}),
        ("bitfit", r".*_norm", {f"layer_{i}/{n}_norm" for i in range(N) for n in ("attention", "ffn")}),
        ("full", r"layer_1/.*", {f"layer_1/{n}" for n in ("attention_norm", "ffn_norm", "ffn/up", "ffn/down")}
         | {f"layer_1/attention/{n}" for n in ("query", "key", "value", "output")}),
        ("houlsby", r".*/ffn", {"layer_0/ffn", "layer_1/ffn"}),
        ("prefix", r"layer_1/.*", {"layer_1/attention"}),
    ],
)  # fmt: skip
def test_targets(params, name, target, sites):
    assert set(create(name, {name: {"target": target}}).init(jax.random.key(0), params)) == sites


def test_lora_start(params):
    delta = create("lora", {"lora": {"rank": 4, "target": ".*/down"}}).init(jax.random.key(0), params)
    a, b = delta["layer_0/ffn/down"]["a"], delta["layer_0/ffn/down"]["b"]
    assert (a.shape, b.shape) == ((F, 4), (4, D))
    assert not b.any()
    bound = F**-0.5
    assert 0.9 * bound < np.abs(a).max() <= bound
    assert abs(a.std() - bound / 3**0.5) < 0.1 * bound


def test_lora_dropout_is_on_the_low_rank_branch_only(params):
    def run(method, delta, key=None):
        rngs = None if key is None else {"dropout": key}
        return forward(encoder(), method, params, delta, IDS, MASK, rngs=rngs)

    plain, dropping = (create("lora", {"lora": {"dropout": rate}}) for rate in (0.0, 0.5))
    start = plain.init(jax.random.key(0), params)
    delta = moved(start, 0)
    key = jax.random.key(1)
    np.testing.assert_array_equal(run(dropping, delta), run(plain, delta))
    np.testing.assert_array_equal(run(plain, delta, key), run(plain, delta))
    np.testing.assert_array_equal(run(dropping, delta, key), run(dropping, delta, key))
    assert np.abs(run(dropping, delta, key) - run(plain, delta))[MASK].max() > 0.01
    # With B = 0 nothing shows: the branch beside it is never dropped.
    np.testing.assert_array_equal(run(dropping, start, key), encoder().apply({"params": params}, IDS, MASK))


def test_dropout_reaches_sites_under_remat(params):
    method = create("lora", {"lora": {"dropout": 0.5}})
    delta = moved(method.init(jax.random.key(0), params), 0)
    model = encoder(remat=True)
    on = forward(model, method, params, delta, IDS, MASK, rngs={"dropout": jax.random.key(1)})
    assert np.abs(on - forward(model, method, params, delta, IDS, MASK))[MASK].max() > 0.01
