"""AdaLoRA: low-rank updates P Λ Q that are pruned to a budget while they train."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm4rec_jax.peft.core import Call, Peft
from llm4rec_jax.peft.methods.lora import check_rate, drop
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, match, replace_kernels, sites


class AdaLoraState(NamedTuple):
    """The state of AdaLoRA's optimizer.

    Attributes:
      step: Number of updates made.
      sensitivity, uncertainty: Ī and U of every array of the delta.
      inner: The state of the optimizer that makes the updates.
    """

    step: jax.Array
    sensitivity: Any
    uncertainty: Any
    inner: Any


@METHODS.register("adalora", "Zhang et al. 2023, arXiv 2303.10512")
def adalora(
    init_rank: int = 12,
    rank: int = 8,
    alpha: float = 8.0,
    dropout: float = 0.0,
    beta1: float = 0.85,
    beta2: float = 0.85,
    penalty: float = 0.5,
    initial: float = 0.1,
    final: float = 0.3,
    every: int = 1,
    target: str = r".*/(query|value)",
) -> Peft:
    """Adaptive low-rank adaptation, which spends a budget of ranks where they matter most.

        y = x W + s ((dropout(x) P) ∘ Λ) Q,   s = alpha / init_rank

    P [in, R] and Q [R, out] are drawn from N(0, 0.02²) and Λ [R] is zero. The pruning is part of the optimizer, so
    there is nothing to call. At each step t of T (algorithm 1), for every array w of the delta with gradient g:

        I = |w g|,  Ī ← β1 Ī + (1 − β1) I,  U ← β2 U + (1 − β2) |I − Ī|,  s(w) = Ī U           (equations 8 to 10)
        S_i = s(Λ_i) + mean s(P_:i) + mean s(Q_i:)                                             (equation 7)
        Λ ← the updated Λ where S_i is among the b(t) highest of all sites together, else 0    (equation 6)

    b(t) falls from n · init_rank to n · rank as a cubic between t_i and T − t_f, with n sites (equation 12). The first
    triplet, by site and then by number, wins a tie. Arrays are scored before their update. From T − t_f on the
    sensitivities and the choice of triplets are fixed, as in the authors' code.

    Use it for long runs, in which a budget of ranks matters: Λ starts slowly.

    Args:
      init_rank: R, the rank of every update at the start.
      rank: Average rank at the end.
      alpha, dropout, target: See `lora`.
      beta1, beta2: Decay rates of the moving averages Ī and U.
      penalty: Weight of the mean of ‖PᵀP − I‖_F and ‖QQᵀ − I‖_F over all matrices (equation 4).
      initial, final: t_i and t_f as shares of the run's T steps.
      every: Number of steps between two prunings (ΔT) before T − t_f.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {"attention": {"query": {"kernel": jnp.ones((8, 4))}}}
      >>> jax.tree.map(jnp.shape, peft.create("adalora").init(jax.random.key(0), params))
      {'attention/query': {'lambda': (12,), 'p': (8, 12), 'q': (12, 4)}}

    References:
      Zhang et al., AdaLoRA: Adaptive Budget Allocation, 2023 (https://arxiv.org/abs/2303.10512).
    """
    if not 1 <= rank <= init_rank:
        raise ValueError(f"adalora: rank is {rank}, must be from 1 to init_rank, {init_rank}")
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= value < 1:
            raise ValueError(f"adalora: {name} is {value}, must be in [0, 1)")
    if initial < 0 or final < 0 or initial + final >= 1:
        raise ValueError(f"adalora: initial {initial} and final {final} leave no time to prune; their sum must be < 1")
    if every < 1:
        raise ValueError(f"adalora: every is {every}, must be at least 1")
    check_rate("adalora", dropout)
    # The authors and peft divide by this.
    scale = alpha / (init_rank + 1e-5)

    def init(key: jax.Array, params: Params) -> Delta:
        linear = sites(params, "kernel")
        delta = {}
        for i, site in enumerate(match(target, linear)):
            size_in, size_out = linear[site]["kernel"].shape
            for_p, for_q = jax.random.split(jax.random.fold_in(key, i))
            delta[site] = {
                "p": 0.02 * jax.random.normal(for_p, (size_in, init_rank)),
                "lambda": jnp.zeros(init_rank),
                "q": 0.02 * jax.random.normal(for_q, (init_rank, size_out)),
            }
        return delta

    def tap(delta: Delta, site: str, call: Call, *args: jax.Array) -> jax.Array:
        y = call(*args)
        if (w := delta.get(site)) is None:
            return y
        x = drop(call, args[0].astype(y.dtype), dropout)
        p, weights, q = (w[name].astype(y.dtype) for name in ("p", "lambda", "q"))
        return y + scale * ((x @ p * weights) @ q)

    def merge(params: Params, delta: Delta) -> Params:
        return replace_kernels(params, delta, lambda kernel, w: kernel + scale * (w["p"] * w["lambda"]) @ w["q"])

    def orthogonality(delta: Delta) -> jax.Array:
        grams = [g for w in delta.values() for g in (w["p"].T @ w["p"], w["q"] @ w["q"].T)]
        return penalty * jnp.mean(jnp.stack([jnp.linalg.norm(g - jnp.eye(len(g))) for g in grams]))

    def optimizer(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
        return prune(tx, steps, rank, beta1, beta2, round(initial * steps), round(final * steps), every)

    return Peft(init, tap=tap, penalty=orthogonality, optimizer=optimizer, merge=merge)


def budgets(steps: int, start: int, end: int, initial: int, final: int) -> np.ndarray:
    """Returns the budget b(t) of every step, rounded down: [T].

    It is `start` before step `initial`, `end` in the last `final` steps, and a cubic between.

    Example:
      >>> budgets(steps=6, start=9, end=1, initial=1, final=2)
      array([9, 9, 3, 1, 1, 1], dtype=int32)
    """
    step = np.arange(steps)
    left = 1 - (step - initial) / (steps - final - initial)
    between = np.floor(end + (start - end) * left**3).astype(np.int32)
    return np.where(step < initial, start, np.where(step >= steps - final, end, between))


def prune(
    tx: optax.GradientTransformation,
    steps: int,
    rank: int,
    beta1: float,
    beta2: float,
    initial: int,
    final: int,
    every: int,
) -> optax.GradientTransformation:
    """Returns `tx` followed by setting every Λ outside the budget to 0; see `adalora`."""
    if steps - final - initial < 1:
        raise ValueError(
            f"adalora: {steps} updates leave no time to prune between the first {initial} and the last {final}"
        )

    def init(params: Any) -> AdaLoraState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdaLoraState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params), tx.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AdaLoraState]:
        grads, delta = updates, params
        updates, inner = tx.update(grads, state.inner, delta)
        learning = state.step < steps - final

        def smooth(beta: float, old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(learning, beta * old + (1 - beta) * new, old)

        now = jax.tree.map(lambda w, g: jnp.abs(w * g), delta, grads)
        sensitivity = jax.tree.map(lambda old, new: smooth(beta1, old, new), state.sensitivity, now)
        uncertainty = jax.tree.map(
            lambda old, new, mean: smooth(beta2, old, jnp.abs(new - mean)), state.uncertainty, now, sensitivity
        )
        scores = jax.tree.map(jnp.multiply, sensitivity, uncertainty)
        names = sorted(delta)
        triplets = [scores[s]["lambda"] + scores[s]["p"].mean(0) + scores[s]["q"].mean(1) for s in names]
        sizes = [len(t) for t in triplets]
        table = budgets(steps, sum(sizes), rank * len(names), initial, final)
        kept = jnp.asarray(table)[jnp.minimum(state.step, steps - 1)]
        due = (state.step % every == 0) | ~learning
        # Choosing by place and not by a threshold keeps exactly the budget when scores are equal.
        order = jnp.argsort(-jnp.concatenate(triplets), stable=True)
        place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
        keep = jnp.split((place < kept) | ~due, np.cumsum(sizes)[:-1])
        moves: Any = updates
        pruned = {
            site: {**moves[site], "lambda": jnp.where(mask, moves[site]["lambda"], -delta[site]["lambda"])}
            for site, mask in zip(names, keep, strict=True)
        }
        return pruned, AdaLoraState(state.step + 1, sensitivity, uncertainty, inner)

    return optax.GradientTransformation(init, update)
