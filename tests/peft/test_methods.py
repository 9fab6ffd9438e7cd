"""The duties of every registered method. A new method joins by a row in `ROWS`."""

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

from llm4rec_jax.models.encoders.base import TRANSFORMER_RULES
from llm4rec_jax.peft import METHODS, chain, count, create, forward
from llm4rec_jax.sharding import make_mesh, place
from tests.helpers.small import IDS, MASK, WEIGHTS, D, F, N, P, T, V, encoder, moved, named, prefixed, prompted


class Row(NamedTuple):
    """A method's row of the table.

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
    "prefix": Row(N * 2 * 3 * D, {"length": 3}, start=prefixed, atol=1e-5),
}


def test_every_method_has_a_row():
    assert set(ROWS) == set(METHODS)


def objective(method, model=None):
    """(delta, params, ids, mask) -> loss, states."""
    model = model or encoder()

    def loss(delta, params, ids, mask):
        states = forward(model, method, params, delta, ids, mask)
        return (states.astype(jnp.float32) * WEIGHTS).sum() + method.penalty(delta), states

    return loss


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
    spread = place(params, mesh, TRANSFORMER_RULES)
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
