"""GaLore's optimizer against algorithm 2 of the paper in numpy."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm4rec_jax.peft import Peft, create
from llm4rec_jax.peft.methods.galore import GaloreState
from llm4rec_jax.training.optimizer import optimizer

RANK, EVERY, SCALE, RATE = 3, 4, 0.25, 0.05
SHAPES = {
    "wide/kernel": (5, 12),
    "tall/kernel": (11, 6),
    "square/kernel": (7, 7),
    "square/bias": (7,),
    "thin/kernel": (3, 10),
    "norm/scale": (6,),
}
PROJECTED = ("wide/kernel", "tall/kernel", "square/kernel")


def galore(**options: Any) -> Peft:
    return create("galore", {"galore": {"rank": RANK, "every": EVERY, "scale": SCALE, **options}})


def nested(flat: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
    tree: dict[str, dict[str, jax.Array]] = {}
    for path, array in flat.items():
        site, _, name = path.rpartition("/")
        tree.setdefault(site, {})[name] = jnp.asarray(array, jnp.float32)
    return tree


def flat(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {f"{site}/{name}": np.asarray(a, np.float64) for site, arrays in tree.items() for name, a in arrays.items()}


def draw(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


START, TARGETS = draw(0), draw(1)


def gradient(name: str, w: np.ndarray, t: int) -> np.ndarray:
    """Gradients of Σ (tanh w − target)² / 2, with targets that change."""
    return (np.tanh(w) - TARGETS[name] * np.cos(0.3 * t)) / np.cosh(w) ** 2


class Reference:
    """Algorithm 2 of Zhao et al. 2024 for one array: Adam on P'G or GP; decay, when there is any, on what P reaches."""

    def __init__(self, w: np.ndarray, decay: float = 0.0, scale: float = SCALE) -> None:
        self.w, self.decay, self.scale = w, decay, scale
        self.projected = w.ndim == 2 and min(w.shape) > RANK
        self.left = self.projected and w.shape[0] < w.shape[1]
        self.m = self.v = np.zeros(())
        self.p = np.zeros(())

    def step(self, g: np.ndarray, t: int, signs_of: np.ndarray) -> None:
        """`signs_of` [R, side] gives the signs of the singular vectors and nothing else: they are anybody's choice."""
        if self.projected and t % EVERY == 0:
            u, _, vt = np.linalg.svd(g)
            self.p = u[:, :RANK] if self.left else vt[:RANK].T
            along = np.sum(self.p * signs_of.T, axis=0)
            np.testing.assert_allclose(np.abs(along), 1.0, atol=1e-4)
            self.p = self.p * np.sign(along)
        low, own = self.down(g), self.down(self.w)
        self.m = 0.9 * self.m + 0.1 * low
        self.v = 0.999 * self.v + 0.001 * low**2
        normed = (self.m / (1 - 0.9 ** (t + 1))) / (np.sqrt(self.v / (1 - 0.999 ** (t + 1))) + 1e-8)
        scale = self.scale if self.projected else 1.0
        self.w = self.w - RATE * self.up(scale * normed + self.decay * own)

    def down(self, full: np.ndarray) -> np.ndarray:
        if not self.projected:
            return full
        return self.p.T @ full if self.left else full @ self.p

    def up(self, low: np.ndarray) -> np.ndarray:
        if not self.projected:
            return low
        return self.p @ low if self.left else low @ self.p.T


def adamw(decay: float) -> optax.GradientTransformation:
    """Decays matrices only, as the project's optimizer does."""
    return optax.adamw(RATE, weight_decay=decay, mask=lambda tree: jax.tree.map(lambda a: a.ndim > 1, tree))


def run(tx: optax.GradientTransformation, steps: int) -> list[tuple[dict[str, np.ndarray], Any]]:
    """Arrays and state after every step from `START`."""
    tree, history, update = nested(START), [], jax.jit(tx.update)
    state = tx.init(tree)
    for t in range(steps):
        grads = nested({name: gradient(name, w, t) for name, w in flat(tree).items()})
        updates, state = update(grads, state, tree)
        tree = optax.apply_updates(tree, updates)
        history.append((flat(tree), state))
    return history


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_trajectory_is_algorithm_2s(decay):
    """Each side follows its own gradients."""
    references = {name: Reference(w, decay if w.ndim > 1 else 0.0) for name, w in START.items()}
    history = run(galore().optimizer(adamw(decay), 10), 10)
    bases = [flat(state.bases) for _, state in history]
    for t, (arrays, state) in enumerate(history):
        assert state.step == t + 1
        for name, reference in references.items():
            reference.step(gradient(name, reference.w, t), t, bases[t][name])
            np.testing.assert_allclose(arrays[name], reference.w, rtol=0, atol=2e-5, err_msg=f"{name} at {t}")
    for name in PROJECTED:
        fresh = [t for t in range(1, 10) if (bases[t][name] != bases[t - 1][name]).any()]
        assert fresh == [4, 8]
        np.testing.assert_allclose(bases[0][name] @ bases[0][name].T, np.eye(RANK), atol=1e-5)
    assert all(bases[-1][name].ndim == 0 for name in SHAPES if name not in PROJECTED)


@pytest.mark.parametrize("signs", [(-1, -1, -1), (1, -1, 1)])
def test_signs_of_singular_vectors_do_not_matter(signs):
    """The same steps as long as a basis is in use: with other signs the reference goes the same way."""
    history = run(galore().optimizer(adamw(0.3), 10), EVERY)
    for name in PROJECTED:
        reference = Reference(START[name], decay=0.3)
        for t, (arrays, state) in enumerate(history):
            reference.step(gradient(name, reference.w, t), t, np.array(signs)[:, None] * flat(state.bases)[name])
            np.testing.assert_allclose(arrays[name], reference.w, rtol=0, atol=2e-5)


@pytest.mark.parametrize("scale", [0.25, 2.0])
def test_weights_decay_at_full_strength_within_the_subspace_only(scale):
    method = galore(scale=scale)
    (decayed, state), (plain, _) = (run(method.optimizer(adamw(decay), 10), 1)[0] for decay in (0.3, 0.0))
    bases = flat(state.bases)
    for name, w in START.items():
        within = w
        if name in PROJECTED:
            onto = bases[name].T @ bases[name]
            within = onto @ w if w.shape[0] < w.shape[1] else w @ onto
            assert np.abs(within - w).max() > 0.1
        want = -RATE * 0.3 * within if w.ndim > 1 else np.zeros_like(w)
        np.testing.assert_allclose(decayed[name] - plain[name], want, rtol=0, atol=2e-6, err_msg=name)


def test_the_state_is_of_low_rank():
    """Adam's moments take R (long side) numbers a matrix, its basis R (short side)."""
    state = galore().optimizer(optax.adam(RATE), 10).init(nested(START))
    want = {
        "wide/kernel": (RANK, 12),
        "tall/kernel": (11, RANK),
        "square/kernel": (7, RANK),
        "square/bias": (7,),
        "thin/kernel": (3, 10),
        "norm/scale": (6,),
    }
    adam = state.inner[0]
    for moments in (adam.mu, adam.nu):
        assert {name: a.shape for name, a in flat(moments).items()} == want
    sides = {name: (RANK, min(SHAPES[name])) if name in PROJECTED else () for name in SHAPES}
    assert {name: a.shape for name, a in flat(state.bases).items()} == sides

    def size(method: Peft) -> int:
        params = {"layer_0": {"ffn": {"up": {"kernel": jax.ShapeDtypeStruct((768, 3072), jnp.float32)}}}}
        return sum(a.size for a in jax.tree.leaves(jax.eval_shape(method.optimizer(optax.adam(RATE), 10).init, params)))

    whole, low = size(create("full")), size(create("galore"))
    assert whole == 2 * 768 * 3072 + 1
    assert low == 2 * 128 * 3072 + 128 * 768 + 2


def test_a_rank_beyond_every_side_is_plain_adam():
    """The smaller side of every matrix decides."""
    ours = run(galore(rank=7).optimizer(adamw(0.3), 10), 6)
    for (arrays, _), (want, _) in zip(ours, run(adamw(0.3), 6), strict=True):
        for name in SHAPES:
            np.testing.assert_allclose(arrays[name], want[name], rtol=0, atol=1e-6, err_msg=name)


def test_in_the_projects_optimizer_it_counts_updates():
    """Two batches make an update, and their mean gradient the basis."""
    method, tree = galore(), {"delta": nested(START), "params": {}}
    tx = optimizer(method, tree, learning_rate=RATE, steps=20, accumulate=2, weight_decay=0.3, clip=None)
    state, update, bases = tx.init(tree), jax.jit(tx.update), []
    alone = run(method.optimizer(adamw(0.3), 10), 6)
    for t in range(6):
        for share in (0.5, 1.5):
            grads = {name: share * gradient(name, w, t) for name, w in flat(tree["delta"]).items()}
            updates, state = update({"delta": nested(grads), "params": {}}, state, tree)
            tree = optax.apply_updates(tree, updates)
            (found,) = (
                part
                for part in jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, GaloreState))
                if isinstance(part, GaloreState)
            )
            bases.append(flat(found.bases)["wide/kernel"])
            assert found.step == t + (share == 1.5)
        for name in SHAPES:
            np.testing.assert_allclose(flat(tree["delta"])[name], alone[t][0][name], rtol=0, atol=2e-5, err_msg=name)
    # Batches 0 and 1 make update 0, and 8 and 9 update 4.
    assert [i for i in range(1, 12) if (bases[i] != bases[i - 1]).any()] == [1, 9]
