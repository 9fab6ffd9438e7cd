"""The optimizer against plain optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm4rec_jax.peft.core import Peft, chain
from llm4rec_jax.training.optimizer import optimizer, schedule

METHOD = Peft(lambda key, params: {})


def trainable() -> dict:
    """A delta and parameters with matrices and vectors."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "delta": {"layer_0/query": {"a": draw(4, 2), "b": draw(2, 3)}},
        "params": {"users": {"kernel": draw(4, 4), "bias": draw(4)}},
    }


def loss(tree: dict, target: jax.Array) -> jax.Array:
    return sum(jnp.square(jnp.sin(a) - target).sum() for a in jax.tree.leaves(tree))


def run(tx: optax.GradientTransformation, targets: list[float]) -> dict:
    """Returns `trainable` after one step for each target."""

    @jax.jit
    def step(tree: dict, state: optax.OptState, target: float) -> tuple[dict, optax.OptState]:
        updates, state = tx.update(jax.grad(loss)(tree, target), state, tree)
        return optax.apply_updates(tree, updates), state

    tree = trainable()
    state = tx.init(tree)
    for target in targets:
        tree, state = step(tree, state, target)
    return tree


def close(a: dict, b: dict, rtol: float = 1e-5) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


TARGETS = np.linspace(-1, 1, 12).tolist()


def matrices(tree: dict) -> dict:
    return jax.tree.map(lambda a: jnp.ndim(a) > 1, tree)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_schedules_are_those_of_optax(kind, warmup):
    ours = schedule(kind, 0.3, 20, warmup, end=0.03)
    plain = {
        "constant": optax.warmup_constant_schedule(0.0, 0.3, warmup) if warmup else optax.constant_schedule(0.3),
        "linear": optax.schedules.join_schedules(
            [optax.linear_schedule(0.0, 0.3, warmup or 1), optax.linear_schedule(0.3, 0.03, 20 - warmup)], [warmup]
        ),
        "cosine": optax.warmup_cosine_decay_schedule(0.0, 0.3, warmup, 20, 0.03),
    }[kind]
    for step in range(25):
        assert float(ours(step)) == pytest.approx(float(plain(step)), rel=1e-5)
    assert float(ours(0)) == pytest.approx(0.0 if warmup else 0.3)
    assert float(ours(warmup)) == pytest.approx(0.3)
    assert float(ours(20)) == pytest.approx(0.3 if kind == "constant" else 0.03)


@pytest.mark.parametrize(
    ("kind", "warmup", "message"),
    [("step", 0, "'step' is not one of"), ("linear", 21, "21 steps in a run of 20"), ("linear", -1, "-1 steps")],
)
def test_impossible_schedules_are_refused(kind, warmup, message):
    with pytest.raises(ValueError, match=message):
        schedule(kind, 1.0, 20, warmup)


def test_it_is_adamw():
    ours = optimizer(
        METHOD, trainable(), learning_rate=0.1, steps=12, schedule_kind="cosine", warmup=3, weight_decay=0.2, clip=None
    )
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 12)
    close(run(ours, TARGETS), run(optax.adamw(rate, weight_decay=0.2, mask=matrices), TARGETS))


def test_vectors_do_not_decay():
    def after(weight_decay: float) -> dict:
        return run(optimizer(METHOD, trainable(), learning_rate=0.1, steps=1, weight_decay=weight_decay), [0.5])

    plain, decayed = after(0.0), after(0.5)
    start = trainable()

    def check(keeps: bool, a: jax.Array, b: jax.Array, initial: jax.Array) -> None:
        np.testing.assert_allclose(b, a - (0.0 if keeps else 0.1 * 0.5) * initial, rtol=1e-5, atol=1e-6)

    jax.tree.map(check, jax.tree.map(lambda a: a.ndim < 2, start), plain, decayed, start)


def test_the_gradient_is_clipped_as_a_whole():
    """Adam hides the scale of a gradient, so two steps of different norms are needed to see it."""
    tree = trainable()
    norms = [float(optax.tree.norm(jax.grad(loss)(tree, target))) for target in TARGETS]
    clip = min(norms) / 2
    ours = optimizer(METHOD, tree, learning_rate=0.1, steps=12, clip=clip)
    plain = run(optax.chain(optax.clip_by_global_norm(clip), optax.adam(0.1)), TARGETS)
    close(run(ours, TARGETS), plain)
    apart = optax.partition(
        {part: optax.chain(optax.clip_by_global_norm(clip), optax.adam(0.1)) for part in tree},
        {part: jax.tree.map(lambda _, part=part: part, tree[part]) for part in tree},
    )
    with pytest.raises(AssertionError):
        close(run(apart, TARGETS), plain)


def test_accumulated_batches_make_one_large_one():
    """The mean of the gradients of 3 batches; the schedule counts updates."""
    options = {"learning_rate": 0.1, "schedule_kind": "linear", "weight_decay": 0.1, "clip": 1.0}
    ours = run(optimizer(METHOD, trainable(), steps=12, warmup=6, accumulate=3, **options), TARGETS)
    large = optimizer(METHOD, trainable(), steps=4, warmup=2, **options)
    tree = trainable()
    state = large.init(tree)
    for start in range(0, 12, 3):
        grads = [jax.grad(loss)(tree, target) for target in TARGETS[start : start + 3]]
        mean = jax.tree.map(lambda *parts: sum(parts) / 3, *grads)
        updates, state = large.update(mean, state, tree)
        tree = optax.apply_updates(tree, updates)
    close(ours, tree)


def test_between_updates_nothing_moves():
    ours = optimizer(METHOD, trainable(), learning_rate=0.1, steps=12, accumulate=3)
    jax.tree.map(np.testing.assert_array_equal, run(ours, TARGETS[:2]), trainable())
    with pytest.raises(ValueError, match="accumulate is 0"):
        optimizer(METHOD, trainable(), learning_rate=0.1, steps=12, accumulate=0)


def test_learning_rates_by_path():
    """The first regex that matches decides, on the decay too."""
    scales = {r"params/users/bias": 0.0, r"params/.*": 0.5}
    options = {"learning_rate": 0.1, "steps": 1, "weight_decay": 0.1}
    scaled = run(optimizer(METHOD, trainable(), scales=scales, **options), [0.5])
    whole, start = run(optimizer(METHOD, trainable(), **options), [0.5]), trainable()
    close(scaled["delta"], whole["delta"])
    np.testing.assert_array_equal(scaled["params"]["users"]["bias"], start["params"]["users"]["bias"])
    moved = [tree["params"]["users"]["kernel"] - start["params"]["users"]["kernel"] for tree in (scaled, whole)]
    np.testing.assert_allclose(moved[0], 0.5 * moved[1], rtol=1e-3, atol=1e-7)


def test_a_regex_that_matches_nothing_lists_what_there_is():
    with pytest.raises(ValueError, match=r"'params/user': matches nothing.*delta/layer_0/query/a, .*params/users/bias"):
        optimizer(METHOD, trainable(), learning_rate=0.1, steps=1, scales={"params/user": 1.0})


def test_a_method_changes_the_optimizer_of_its_delta_and_sees_nothing_else():
    def slower(updates: dict, params: dict) -> dict:
        assert list(updates) == list(params) == ["layer_0/query"]
        return jax.tree.map(lambda a: 0.1 * a, updates)

    slow = Peft(lambda key, params: {}, optimizer=lambda tx, steps: optax.chain(tx, optax.stateless(slower)))
    start = trainable()
    ours = run(optimizer(slow, start, learning_rate=0.1, steps=1), [0.5])
    plain = run(optimizer(METHOD, start, learning_rate=0.1, steps=1), [0.5])
    close(ours["params"], plain["params"])
    moved = jax.tree.map(lambda a, b: a - b, ours["delta"], start["delta"])
    close(moved, jax.tree.map(lambda a, b: 0.1 * (a - b), plain["delta"], start["delta"]), rtol=1e-3)


def test_a_chain_gives_each_method_its_own():
    slow = Peft(lambda key, params: {}, optimizer=lambda tx, steps: optax.chain(tx, optax.scale(0.0)))
    delta = {"0": trainable()["delta"], "1": trainable()["delta"]}
    tree = {"delta": delta, "params": trainable()["params"]}
    tx = optimizer(chain(METHOD, slow), tree, learning_rate=0.1, steps=1)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, tree), tx.init(tree), tree)
    assert all((a != 0).all() for a in jax.tree.leaves(updates["delta"]["0"]))
    assert not any(a.any() for a in jax.tree.leaves(updates["delta"]["1"]))


def test_nothing_in_the_delta_is_no_matter():
    tree = {"delta": {}, "params": trainable()["params"]}
    tx = optimizer(METHOD, tree, learning_rate=0.1, steps=1, weight_decay=0.1)
    updates, _ = tx.update(tree, tx.init(tree), tree)
    assert updates["delta"] == {}
