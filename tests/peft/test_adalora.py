"""AdaLoRA's pruning against the published recursion in numpy, by itself, in the project's optimizer and in training."""

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm4rec_jax.peft import Peft, create
from llm4rec_jax.peft.methods.adalora import AdaLoraState
from llm4rec_jax.trees import unflatten

R, RANK = 6, 2
SIZES = {
    "layer_0/attention/query": (9, 7),
    "layer_0/attention/value": (5, 12),
    "layer_1/attention/query": (8, 8),
    "layer_1/attention/value": (16, 4),
    "layer_10/attention/query": (3, 11),
}
NAMES = sorted(SIZES)
TOTAL = R * len(NAMES)


def adalora(**options: Any) -> Peft:
    return create("adalora", {"adalora": {"init_rank": R, "rank": RANK, "alpha": 24.0, **options}})


@cache
def start() -> dict[str, Any]:
    """The delta at the start, over matrices of `SIZES`."""
    flat = {f"{site}/kernel": jnp.zeros(size) for site, size in SIZES.items()}
    return jax.jit(adalora().init)(jax.random.key(0), unflatten(flat))


def loss(method: Peft):
    """(delta, step) -> how far the low-rank products are from drifting targets, and the method's penalty."""
    rng = np.random.default_rng(1)
    inputs = {site: jnp.asarray(rng.normal(size=(20, rows)), jnp.float32) for site, (rows, _) in SIZES.items()}
    # Matrices of differing importance.
    targets = {
        site: jnp.asarray(0.3 * (i + 1) * rng.normal(size=(20, columns)), jnp.float32)
        for i, (site, (_, columns)) in enumerate(SIZES.items())
    }

    def value(delta, step):
        total = method.penalty(delta)
        for i, (site, own) in enumerate(delta.items()):
            weight = 1 + 0.5 * jnp.sin(step / 7.0 + i)
            total += weight * jnp.square((inputs[site] @ own["p"] * own["lambda"]) @ own["q"] - targets[site]).mean()
        return total

    return value


class Reference:
    """Algorithm 1 of Zhang et al. 2023, without its gradient step, in numpy and double precision."""

    def __init__(self, steps: int, beta1=0.85, beta2=0.85, initial=0.1, final=0.3, every=1) -> None:
        self.total, self.t_i, self.t_f = steps, round(initial * steps), round(final * steps)
        self.beta1, self.beta2, self.every = beta1, beta2, every
        self.t = 0
        self.sensitivity: dict[tuple[str, str], np.ndarray] = {}
        self.uncertainty: dict[tuple[str, str], np.ndarray] = {}

    def budget(self, t: int) -> int:
        """b(t) of equation 12, whose warm-up and cool-down take t_i and t_f steps."""
        if t < self.t_i:
            return TOTAL
        if t >= self.total - self.t_f:
            return RANK * len(NAMES)
        done = Fraction(t - self.t_i, self.total - self.t_i - self.t_f)
        return math.floor(RANK * len(NAMES) + (TOTAL - RANK * len(NAMES)) * (1 - done) ** 3)

    def step(self, delta: Mapping[str, Any], grads: Mapping[str, Any]) -> np.ndarray | None:
        """The triplets of all sites that stay, [sites, R]; None when this step prunes nothing."""
        learning = self.t < self.total - self.t_f
        for site in NAMES:
            for name in ("p", "lambda", "q"):
                w, g = np.float64(delta[site][name]), np.float64(grads[site][name])
                importance = np.abs(w * g)
                mean = self.sensitivity.get((site, name), np.zeros_like(w))
                spread = self.uncertainty.get((site, name), np.zeros_like(w))
                if learning:
                    mean = self.beta1 * mean + (1 - self.beta1) * importance
                    spread = self.beta2 * spread + (1 - self.beta2) * np.abs(importance - mean)
                self.sensitivity[site, name], self.uncertainty[site, name] = mean, spread
        scores = []
        for site in NAMES:
            s = {name: self.sensitivity[site, name] * self.uncertainty[site, name] for name in ("p", "lambda", "q")}
            rows, columns = SIZES[site]
            for i in range(R):
                whole = s["lambda"][i] + sum(s["p"][:, i]) / rows + sum(s["q"][i]) / columns
                scores.append((-whole, len(scores)))
        kept = np.zeros(len(scores), bool)
        for _, place in sorted(scores)[: self.budget(self.t)]:
            kept[place] = True
        due = self.t % self.every == 0 or not learning
        self.t += 1
        return kept.reshape(len(NAMES), R) if due else None


def lambdas(delta: Mapping[str, Any]) -> np.ndarray:
    return np.stack([np.asarray(delta[site]["lambda"]) for site in NAMES])


class Step(NamedTuple):
    """Attributes:
    before, grads, after: the delta, its gradients, and the updated delta.
    plain: the delta as the optimizer without pruning would leave it.
    state: the state after the step.
    """

    before: dict[str, Any]
    grads: dict[str, Any]
    after: dict[str, Any]
    plain: dict[str, Any]
    state: AdaLoraState


STEPS = 200
CASES = {"defaults": {}, "others": {"beta1": 0.7, "beta2": 0.95, "initial": 0.0, "final": 0.2, "every": 3}}


@cache
def run(case: str) -> list[Step]:
    """All steps of a run over the seeded problem."""
    method, inner = adalora(**CASES[case]), optax.adam(2e-2)
    tx, gradient = method.optimizer(inner, STEPS), jax.grad(loss(method))
    delta = start()

    @jax.jit
    def one(delta, state, t):
        grads = gradient(delta, t)
        updates, new = tx.update(grads, state, delta)
        plain, _ = inner.update(grads, state.inner, delta)
        return grads, optax.apply_updates(delta, updates), optax.apply_updates(delta, plain), new

    history, state = [], tx.init(delta)
    for t in range(STEPS):
        grads, after, plain, state = one(delta, state, float(t))
        history.append(Step(*jax.tree.map(np.asarray, (delta, grads, after, plain)), jax.tree.map(np.asarray, state)))
        delta = after
    return history


def close(ours: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-6 * max(np.abs(want).max(), 1e-12))


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_the_papers(case):
    reference = Reference(STEPS, **CASES[case])
    counts, back, pruned = [], 0, np.zeros((len(NAMES), R), bool)
    for t, step in enumerate(run(case)):
        kept = reference.step(step.before, step.grads)
        assert step.state.step == t + 1
        for site in NAMES:
            for name in ("p", "lambda", "q"):
                close(step.state.sensitivity[site][name], reference.sensitivity[site, name])
                close(step.state.uncertainty[site][name], reference.uncertainty[site, name])
        if kept is None:
            kept = np.ones((len(NAMES), R), bool)
        else:
            counts.append(reference.budget(t))
            assert kept.sum() == counts[-1]
            back += (kept & pruned).sum()
            pruned = ~kept
        ours = lambdas(step.after)
        np.testing.assert_array_equal(ours != 0.0, kept, err_msg=f"step {t}")
        # All else is updated as it would be without pruning.
        close(ours[kept], lambdas(step.plain)[kept])
        for site in NAMES:
            for name in ("p", "q"):
                close(step.after[site][name], step.plain[site][name])
    assert counts[0] == TOTAL
    assert counts[-1] == RANK * len(NAMES)
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 10
    # The budget is shared: it is no rank for each.
    assert len(set(pruned.sum(1).tolist())) > 1
    assert back > 0


def test_in_the_last_share_sensitivities_rest():
    history = run("defaults")
    last = STEPS - 60
    moving, resting = history[last - 2 : last], history[last - 1 :]
    for name in ("sensitivity", "uncertainty"):
        first = getattr(resting[0].state, name)
        for step in resting[1:]:
            jax.tree.map(np.testing.assert_array_equal, getattr(step.state, name), first)
        changed = jax.tree.map(lambda a, b: (a != b).any(), *(getattr(step.state, name) for step in moving))
        assert all(jax.tree.leaves(changed))
    kept = lambdas(history[last].after) != 0
    assert kept.sum() == RANK * len(NAMES)
    for step in history[last + 1 :]:
        np.testing.assert_array_equal(lambdas(step.after) != 0, kept)
        # The rest is still trained.
        np.testing.assert_array_equal(lambdas(step.after) != lambdas(step.before), kept)


def test_between_prunings_everything_moves():
    zeros = [int((lambdas(step.after) == 0).sum()) for step in run("others")]
    reference = Reference(STEPS, **CASES["others"])
    for t, zero in enumerate(zeros):
        due = t % 3 == 0 or t >= 160
        assert zero == (TOTAL - reference.budget(t) if due else 0), t
    assert len(set(zeros)) > 10


def test_of_equal_scores_the_first_stay():
    method, steps = adalora(), 30
    delta = jax.tree.map(jnp.ones_like, start())
    tx, reference = method.optimizer(optax.sgd(0.1), steps), Reference(steps)
    state, zeros, update = tx.init(delta), jax.tree.map(jnp.zeros_like, delta), jax.jit(tx.update)
    for t in range(steps):
        updates, state = update(zeros, state, delta)
        after = optax.apply_updates(delta, updates)
        kept = (lambdas(after) != 0).ravel()
        budget = reference.budget(t)
        assert kept.sum() == budget
        assert kept[:budget].all()


def test_equal_scores_below_a_higher_one():
    """One triplet of the last site scores; of the others, which do not, the first ones stay."""
    method = adalora(initial=0.0, final=0.5)
    delta = jax.tree.map(jnp.ones_like, start())
    tx = method.optimizer(optax.sgd(0.0), 4)
    state, update = tx.init(delta), jax.jit(tx.update)
    grads = jax.tree.map(jnp.zeros_like, delta)
    grads[NAMES[-1]]["lambda"] = grads[NAMES[-1]]["lambda"].at[-1].set(1.0)
    for _ in range(4):
        updates, state = update(grads, state, delta)
    kept = (lambdas(optax.apply_updates(delta, updates)) != 0).ravel()
    want = np.zeros(TOTAL, bool)
    want[: RANK * len(NAMES) - 1] = want[-1] = True
    np.testing.assert_array_equal(kept, want)


def test_what_was_pruned_can_come_back():
    """Its P and Q are sensitive enough; its Λ goes on from 0."""
    method = create("adalora", {"adalora": {"init_rank": 2, "rank": 1, "initial": 0.0, "final": 0.1}})
    delta = {"layer_0/query": {"p": jnp.ones((3, 2)), "lambda": jnp.ones(2), "q": jnp.ones((2, 4))}}
    steps = 60
    tx = method.optimizer(optax.sgd(1e-2), steps)
    state, update, alive = tx.init(delta), jax.jit(tx.update), []
    for t in range(steps):
        # First the one triplet matters, then the other.
        matters = jnp.array([0.0, 1.0] if t < 40 else [1.0, 0.0])
        p = jnp.tile(matters, (3, 1))
        grads = {"layer_0/query": {"p": p, "lambda": jnp.full(2, -0.01), "q": jnp.zeros((2, 4))}}
        updates, state = update(grads, state, delta)
        delta = optax.apply_updates(delta, updates)
        alive.append(np.asarray(delta["layer_0/query"]["lambda"] != 0).tolist())
    assert alive[0] == [True, True]
    assert alive[39] == [False, True]
    assert alive[-1] == [True, False]
    back = [t for t in range(1, steps) if alive[t][0] and not alive[t - 1][0]]
    assert len(back) == 1
    assert back[0] > 39
    np.testing.assert_allclose(delta["layer_0/query"]["lambda"][0], 1e-4 * (steps - back[0]), rtol=1e-4)
