"""AdamW with warm-up, a schedule, clipping, accumulation, and learning rates by regex."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

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


def scale_by_path(scales: Mapping[str, float], trainable: Any) -> optax.GradientTransformation:
    """Multiplies the updates of the arrays whose path matches a regex in full; the first that matches decides.

    Raises:
      ValueError: a regex matches none of `trainable`'s arrays; the message lists what exists.
    """
    names = list(flatten(trainable))
    for pattern in scales:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(f"learning rate of {pattern!r}: matches nothing trainable; there are: {', '.join(names)}")

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        name = path_name(path)
        return update * next((s for pattern, s in scales.items() if re.fullmatch(pattern, name)), 1.0)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates))


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
    scales: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """The optimizer of {"delta": …, "params": …}; the method may change it for its delta.

    Args:
      method: its `optimizer` wraps the one for the delta.
      trainable: the tree that will be trained, to check regexes against.
      learning_rate: the peak; it and `weight_decay` may be arrays, of a program that trains with any.
      steps: total number of batches; one update is made for every `accumulate` of them.
      schedule_kind, warmup: see `schedule`; warm-up in batches.
      weight_decay: decoupled (Loshchilov & Hutter 2019), on arrays of two axes or more.
      clip: largest global norm of the gradient, None for no clipping.
      accumulate: batches whose mean gradient makes one update.
      scales: factors on the learning rate by regex over paths such as "params/users/layer_0/ffn/up/kernel".

    Raises:
      ValueError: a negative `clip`, a regex that matches nothing, or the delta of a method that changes its optimizer.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}, must be at least 1")
    if clip is not None and clip < 0:
        raise ValueError(f"clip is {clip}, must be at least 0: a negative norm would reverse every gradient")
    # The last window may be a part of one.
    updates, rest = -(-steps // accumulate), steps % accumulate
    rate = schedule(schedule_kind, learning_rate, updates, -(-warmup // accumulate))
    if method.changes_optimizer:
        names = list(flatten({"delta": trainable["delta"]}))
        for pattern in scales or {}:
            if found := [name for name in names if re.fullmatch(pattern, name)]:
                raise ValueError(
                    f"learning rate of {pattern!r}: matches {found[0]}, but {method.name or 'the method'} decides "
                    "itself how its delta is updated; leave the delta out"
                )
    tx = optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(weight_decay, mask=lambda tree: jax.tree.map(lambda a: jnp.ndim(a) > 1, tree)),
        optax.scale_by_learning_rate(rate),
    )
    tx = optimize_apart({"delta": method.optimizer(tx, updates), "params": tx})
    tx = optax.chain(
        optax.clip_by_global_norm(clip) if clip is not None else optax.identity(),
        tx,
        scale_by_path(scales or {}, trainable),
    )
    if accumulate == 1:
        return tx
    window = (lambda update: jnp.where(update == updates - 1, rest, accumulate)) if rest else accumulate
    return optax.MultiSteps(tx, window).gradient_transformation()
