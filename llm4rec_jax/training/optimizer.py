"""Optimizers with warm-up, a schedule, clipping, accumulation, and a learning rate for each array."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from llm4rec_jax.peft.core import Peft, optimize_apart
from llm4rec_jax.trees import flatten, path_name

Schedule = Literal["constant", "linear", "cosine"]


def schedule(kind: str, peak: float | jax.Array, steps: int, warmup: int = 0, end: float = 0.0) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then constant, or linear or cosine decay to `end` at `steps`.

    Args:
      kind: "constant", "linear" or "cosine".
      peak, end: learning rates.
      steps, warmup: counted in optimizer updates.

    Raises:
      ValueError: an unknown kind, or a warm-up longer than the run.
    """
    if warmup < 0 or warmup > steps:
        raise ValueError(f"a warm-up of {warmup} steps in a run of {steps}")
    rest = max(steps - warmup, 1)
    if kind == "constant":
        decay = optax.constant_schedule(peak)
    elif kind == "linear":
        decay = optax.linear_schedule(peak, end, rest)
    elif kind == "cosine":
        decay = optax.cosine_decay_schedule(peak, rest, alpha=end / peak if end else 0.0)
    else:
        raise ValueError(f"schedule {kind!r} is not one of constant, linear, cosine")
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def scale_by_path(factors: Mapping[str, float | jax.Array]) -> optax.GradientTransformation:
    """Multiplies the updates of arrays by factors, by path."""

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        return update * factors.get(path_name(path), 1.0)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates))


def named_optimizer(
    name: str, rate: optax.Schedule, weight_decay: float | jax.Array = 0.0
) -> optax.GradientTransformation:
    """Returns an optimizer by its name in optax; only matrices decay.

    These are "adamw" (Loshchilov and Hutter 2019, arXiv 1711.05101), "lion" (Chen et al. 2023, arXiv 2302.06675),
    "muon" for matrices, its updates as large as those of the AdamW that it leaves the rest to (Liu et al. 2025, arXiv
    2502.16982), and the optimizer whose steps "schedule_free_adamw" averages (Defazio et al. 2024, arXiv 2405.15682).
    """
    if name == "muon":
        return optax.contrib.muon(
            rate,
            weight_decay=weight_decay,
            muon_weight_dimension_numbers=_muon_dimensions,
            consistent_rms=0.2,
        )
    direction = {
        "adamw": optax.scale_by_adam,
        "lion": optax.scale_by_lion,
        # Adam without its first moment, which the average over steps replaces.
        "schedule_free_adamw": partial(optax.scale_by_rms, 0.999, 1e-8, eps_in_sqrt=False, bias_correction=True),
    }[name]()
    decay = optax.add_decayed_weights(weight_decay, mask=lambda tree: jax.tree.map(lambda a: jnp.ndim(a) > 1, tree))
    return optax.chain(direction, decay, optax.scale_by_learning_rate(rate))


def _muon_dimensions(tree: Any) -> Any:
    """Returns what is a matrix to Muon: all arrays of two axes but tables of vectors."""

    def dimensions(path: tuple[Any, ...], array: Any) -> optax.contrib.MuonDimensionNumbers | None:
        is_table = path_name(path).split("/")[-1] == "embedding"
        return optax.contrib.MuonDimensionNumbers() if jnp.ndim(array) == 2 and not is_table else None

    return jax.tree_util.tree_map_with_path(dimensions, tree)


def optimizer(
    method: Peft,
    trainable: Mapping[str, Any],
    *,
    learning_rate: float | jax.Array,
    steps: int,
    schedule_kind: str = "constant",
    warmup: int = 0,
    weight_decay: float | jax.Array = 0.0,
    clip: float | None = 1.0,
    accumulate: int = 1,
    factors: Mapping[str, float | jax.Array] | None = None,
    name: str = "adamw",
    head_only: int = 0,
) -> optax.GradientTransformation:
    """The optimizer of {"delta": …, "params": …}; the method may change it for its delta.

    Args:
      method: its `optimizer` wraps the one for the delta.
      trainable: the tree that will be trained, or the shapes of its arrays.
      learning_rate: the peak; it and `weight_decay` may be arrays, of a program that trains with any.
      steps: total number of batches; one update is made for every `accumulate` of them.
      schedule_kind, warmup: see `schedule`; warm-up in batches.
      weight_decay: decoupled (Loshchilov & Hutter 2019), on arrays of two axes or more.
      clip: largest global norm of the gradient, None for no clipping.
      accumulate: batches whose mean gradient makes one update.
      factors: factors on the learning rate by path; see `rate_factors`.
      name: see `named_optimizer`.
      head_only: batches in which the delta rests while the other parameters are trained (Kumar et al. 2022, LP-FT,
        arXiv 2202.10054). Then its own warm-up and schedule begin.

    Raises:
      ValueError: a negative `clip`, a factor for the delta of a method that changes its optimizer, or such a method
        with "schedule_free_adamw".
    """
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}, must be at least 1")
    if clip is not None and clip < 0:
        raise ValueError(f"clip is {clip}, must be at least 0: a negative norm would reverse every gradient")
    # The last window may be a part of one.
    updates, rest, resting = -(-steps // accumulate), steps % accumulate, -(-head_only // accumulate)
    if method.changes_optimizer:
        _check_method(method, trainable, factors or {}, name)

    def of_part(updates: int) -> optax.GradientTransformation:
        return named_optimizer(name, rate_over(updates), weight_decay)

    def rate_over(updates: int) -> optax.Schedule:
        return schedule(schedule_kind, learning_rate, updates, -(-warmup // accumulate))

    delta = method.optimizer(of_part(updates - resting), updates - resting)
    before = [optax.clip_by_global_norm(clip) if clip is not None else optax.identity()]
    if resting:
        delta = optax.conditionally_mask(delta, lambda step, **_: jnp.asarray(step) >= resting)
        # The gradient of an array that rests counts for nothing in the norm.
        rests = optax.scale_by_schedule(lambda update: jnp.float32(jnp.asarray(update) >= resting))
        before.insert(0, optimize_apart({"delta": rests, "params": optax.identity()}))
    after = [optimize_apart({"delta": delta, "params": of_part(updates)}), scale_by_path(factors or {})]
    if name == "schedule_free_adamw":
        after = [optax.contrib.schedule_free(optax.chain(*after), rate_over(updates))]
    tx = optax.chain(*before, *after)
    if accumulate == 1:
        return tx
    window = (lambda update: jnp.where(update == updates - 1, rest, accumulate)) if rest else accumulate
    return optax.MultiSteps(tx, window).gradient_transformation()


def _check_method(method: Peft, trainable: Any, factors: Mapping[str, Any], name: str) -> None:
    """Raises ValueError for options that a method which changes its optimizer cannot have."""
    said = f"{method.name or 'the method'} decides itself how its delta is updated"
    if found := [path for path in flatten({"delta": trainable["delta"]}) if path in factors]:
        raise ValueError(f"{found[0]} has a learning rate of its own, but {said}; leave the delta out")
    if name != "adamw":
        raise ValueError(f"train.optimizer is {name!r}, but {said}; leave it at adamw")


def averaged(opt_state: optax.OptState, trainable: Any) -> Any:
    """Returns the parameters to evaluate of a state of "schedule_free_adamw"."""

    def is_average(state: Any) -> bool:
        return isinstance(state, optax.contrib.ScheduleFreeState)

    (state,) = filter(is_average, jax.tree.leaves(opt_state, is_leaf=is_average))
    return optax.contrib.schedule_free_eval_params(state, trainable)
