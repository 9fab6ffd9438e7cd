"""The optimizer against plain optax."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from llm4rec_jax.peft.core import Peft, chain
from llm4rec_jax.training.config import PartRates, TrainConfig
from llm4rec_jax.training.optimizer import averaged, optimizer, schedule
from llm4rec_jax.training.rates import rate_factors
from llm4rec_jax.training.step import TrainStep

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
    scaled = run(optimizer(METHOD, trainable(), factors=rate_factors(trainable(), scales=scales), **options), [0.5])
    whole, start = run(optimizer(METHOD, trainable(), **options), [0.5]), trainable()
    close(scaled["delta"], whole["delta"])
    np.testing.assert_array_equal(scaled["params"]["users"]["bias"], start["params"]["users"]["bias"])
    moved = [tree["params"]["users"]["kernel"] - start["params"]["users"]["kernel"] for tree in (scaled, whole)]
    np.testing.assert_allclose(moved[0], 0.5 * moved[1], rtol=1e-3, atol=1e-7)


def test_a_regex_that_matches_nothing_lists_what_there_is():
    with pytest.raises(ValueError, match=r"'params/user': matches nothing.*delta/layer_0/query/a, .*params/users/bias"):
        rate_factors(trainable(), scales={"params/user": 1.0})


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


def test_lion_and_muon_are_those_of_optax():
    options: Any = {"learning_rate": 0.01, "steps": 12, "weight_decay": 0.2, "clip": None}
    ours = run(optimizer(METHOD, trainable(), name="lion", **options), TARGETS)
    close(ours, run(optax.lion(0.01, weight_decay=0.2, mask=matrices), TARGETS))
    ours = run(optimizer(METHOD, trainable(), name="muon", **options), TARGETS)
    close(ours, run(optax.contrib.muon(0.01, weight_decay=0.2, consistent_rms=0.2), TARGETS), rtol=1e-4)


def test_tables_of_vectors_are_no_matrices_to_muon():
    tree = {"delta": {}, "params": {"ids": {"embedding": jnp.ones((4, 3))}, "project": {"kernel": jnp.ones((4, 3))}}}
    tx = optimizer(METHOD, tree, learning_rate=1.0, steps=1, clip=None, name="muon")
    updates, _ = tx.update(tree, tx.init(tree), tree)
    adam = optax.adam(1.0, nesterov=True)
    expected, _ = adam.update(tree["params"], adam.init(tree["params"]), tree["params"])
    np.testing.assert_allclose(updates["params"]["ids"]["embedding"], expected["ids"]["embedding"], rtol=1e-5)
    assert np.abs(updates["params"]["project"]["kernel"]).max() < 0.5


def test_schedule_free_adamw_is_that_of_optax():
    tx = optimizer(METHOD, trainable(), learning_rate=0.1, steps=12, warmup=3, clip=None, name="schedule_free_adamw")
    plain = optax.contrib.schedule_free_adamw(0.1, warmup_steps=3)
    evaluated = []
    for one in (tx, plain):
        tree = trainable()
        state = one.init(tree)
        for target in TARGETS:
            updates, state = one.update(jax.grad(loss)(tree, target), state, tree)
            tree = optax.apply_updates(tree, updates)
        evaluated.append(averaged(state, tree))
    close(*evaluated)
    assert not np.allclose(evaluated[0]["params"]["users"]["bias"], tree["params"]["users"]["bias"])


def within_parts() -> dict[str, Any]:
    """Arrays by the names that a recommender gives them."""
    encoder = {"embeddings/word": {"prompt": 0.0}, "layer_1/ffn/up": {"a": 0.0}, "layer_3/attention/query": {"a": 0.0}}
    params = {"project": {"kernel": 0.0}, "users": {"layer_0": {"kernel": 0.0}}, "head": {"kernel": 0.0}}
    return {"delta": {"0": {"encoder": encoder}, "1": {"users": {"layer_0": {"b": 0.0}}}}, "params": params}


def test_rates_of_parts_blocks_and_regexes_multiply():
    rates = PartRates(encoder=0.02, users=0.5)
    factors = rate_factors(within_parts(), 0.1, rates=rates, layer_decay=0.5, scales={"params/.*": 3.0, ".*": 7.0})
    assert factors == pytest.approx(
        {
            "delta/0/encoder/embeddings/word/prompt": 7 * 0.2 * 0.5**4,
            "delta/0/encoder/layer_1/ffn/up/a": 7 * 0.2 * 0.5**2,
            "delta/0/encoder/layer_3/attention/query/a": 7 * 0.2,
            "delta/1/users/layer_0/b": 7 * 5,
            "params/users/layer_0/kernel": 3 * 5,
            "params/project/kernel": 3,
            "params/head/kernel": 3,
        }
    )
    assert rate_factors(within_parts()) == {}
    with pytest.raises(ValueError, match=r"train.rates.head: no such part is trained; there are: .*users/kernel"):
        rate_factors(trainable(), rates=PartRates(head=0.1))
    with pytest.raises(ValueError, match=r"train.layer_decay: no block is trained"):
        rate_factors(trainable(), layer_decay=0.5)


def test_a_part_has_its_rate_whatever_the_others_have():
    tree = trainable()
    factors = rate_factors(tree, 0.1, rates=PartRates(users=0.03))
    ours = run(optimizer(METHOD, tree, learning_rate=0.1, steps=12, clip=None, factors=factors), TARGETS)
    rates = {"delta": optax.adam(0.1), "params": optax.adam(0.03)}
    plain = optax.partition(rates, {part: jax.tree.map(lambda _, part=part: part, tree[part]) for part in tree})
    close(ours, run(plain, TARGETS), rtol=1e-4)


def test_a_delta_that_rests_begins_as_a_run_of_its_own():
    """After five updates of the head alone, with the head's own clipping: Adam's moments and the schedule are new."""
    options: Any = {"learning_rate": 0.1, "schedule_kind": "cosine", "warmup": 3, "clip": 0.5}
    tx = optimizer(METHOD, trainable(), steps=12, head_only=5, **options)
    head = optimizer(METHOD, trainable(), steps=12, **options)
    delta = optimizer(METHOD, trainable(), steps=7, **{**options, "clip": None})
    tree, state = trainable(), tx.init(trainable())
    head_state, delta_state = head.init(tree), delta.init(tree)
    for i, target in enumerate(TARGETS):
        grads = jax.grad(loss)(tree, target)
        updates, state = tx.update(grads, state, tree)
        if i < 5:
            grads["delta"] = jax.tree.map(jnp.zeros_like, grads["delta"])
        expected, head_state = head.update(grads, head_state, tree)
        if i >= 5:
            clipped, _ = optax.clip_by_global_norm(0.5).update(grads, optax.EmptyState())
            own, delta_state = delta.update(clipped, delta_state, tree)
        expected["delta"] = grads["delta"] if i < 5 else own["delta"]
        close(updates, expected)
        tree = optax.apply_updates(tree, updates)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), tree["delta"], trainable()["delta"])
    assert min(jax.tree.leaves(moved)) > 0.01


def test_the_moving_average_is_that_of_optax_without_the_start():
    task: Any = SimpleNamespace(method=METHOD, loss=lambda trainable, frozen, batch, *_: loss(trainable, batch))
    step = TrainStep(task, TrainConfig(steps=12, learning_rate=0.1, ema=0.8), trainable())
    state = step.start(step.setting, trainable())
    plain = optax.ema(0.8, debias=True)
    plain_state = plain.init(trainable())
    for target in TARGETS:
        state, _ = jax.jit(step.step)({}, step.setting, state, target)
        expected, plain_state = plain.update(state["trainable"], plain_state)
        close(state["average"], expected)
    assert "average" not in TrainStep(task, TrainConfig(), trainable()).start(step.setting, trainable())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "lyon"}, "did you mean 'lion'"),
        ({"layer_decay": 1.5}, "must be at most 1.0"),
        ({"ema": 1.0}, "must be less than 1.0"),
        (
            {"rates": PartRates(users=0.1), "learning_rate": 0.0},
            "config.train.learning_rate is 0, but config.train.rates",
        ),
        ({"steps": 10, "warmup": 3, "freeze_encoder_steps": 8}, "nothing is left of a run of 10"),
        ({"optimizer": "schedule_free_adamw", "schedule": "cosine"}, "config.train.schedule is 'cosine'"),
        ({"optimizer": "schedule_free_adamw", "ema": 0.9}, "config.train.ema is 0.9"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**options)
