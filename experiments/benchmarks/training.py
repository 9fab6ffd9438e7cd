"""A configuration's training step as `train` makes it, out of its loop: to be timed, or only compiled."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm4rec_jax.data.batching.batch import Batch
from llm4rec_jax.data.batching.builder import BatchBuilder, BatchOptions, training_batches
from llm4rec_jax.inference.batch_sizes import group_cost
from llm4rec_jax.losses.ranking import LOSSES
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.sharding import make_mesh
from llm4rec_jax.tasks.ranking_objective import Objective
from llm4rec_jax.training.optimizer import optimizer
from llm4rec_jax.training.runs import separate
from llm4rec_jax.training.step import Update


class Parts(NamedTuple):
    """What a step is made of and called with: `update.step(frozen, setting, state, batch)`."""

    update: Update
    frozen: dict[str, Any]
    setting: dict[str, jax.Array]
    trainable: dict[str, Any]


def parts(assembly: Assembly, params: Mapping[str, Any], cut: int = 0, dropout: bool = True) -> Parts:
    """The step of a configuration; `params` may be shapes only.

    Args:
      cut: the block that `frozen["states"]` are the input of, where they are given to it.
      dropout: False turns it off.
    """
    config, method = assembly.config, assembly.method
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
    trainable, frozen = (
        jax.eval_shape(lambda p: separate(method, p, key), params) if abstract else separate(method, params, key)
    )

    def tx_of(setting: Mapping[str, Any]) -> optax.GradientTransformation:
        return optimizer(
            method,
            trainable,
            learning_rate=setting["learning_rate"],
            steps=config.train.steps,
            schedule_kind=config.train.schedule,
            warmup=config.train.warmup,
            weight_decay=setting["weight_decay"],
            clip=config.train.clip or None,
            accumulate=config.train.accumulate,
            scales=assembly.scales,
        )

    objective = Objective(assembly.model, method, LOSSES.lookup(config.loss.name), config.loss.label_threshold, cut)
    setting = {
        "key": jax.random.key_data(jax.random.key(config.seed)),
        "learning_rate": jnp.float32(config.train.learning_rate),
        "weight_decay": jnp.float32(config.train.weight_decay),
    }
    return Parts(Update(objective, tx_of, dropout), frozen, setting, trainable)


def batches(assembly: Assembly, multiple_of: int = 1, compact: bool = True) -> tuple[BatchBuilder, Any]:
    """The input of a configuration: see `training_batches`."""
    config = assembly.config
    loss = LOSSES.lookup(config.loss.name)
    return training_batches(
        assembly.split,
        BatchOptions(
            batch_size=config.train.batch_size,
            history=config.train.history,
            negatives=loss.negatives,
            num_negatives=config.loss.num_negatives,
            alpha=config.loss.alpha,
            compact_targets=compact,
            group_cost=group_cost(make_mesh()),
        ),
        tokens=assembly.tokens,
        seed=config.seed,
        multiple_of=multiple_of,
        workers=config.train.input_workers or 0,
    )


class Stepper:
    """Steps one after another, as the loop makes them: the next is given out before this one is done."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._update = jax.jit(parts.update.step, donate_argnums=2)
        self._shapes: set[tuple[Any, ...]] = set()
        own = jax.tree.map(jnp.copy, parts.trainable)
        self.state = jax.jit(parts.update.start)(parts.setting, own)

    def __call__(self, batch: Batch) -> jax.Array:
        """A step; the loss, which may not have been computed yet."""
        self._shapes.add(tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch)))
        self.state, figures = self._update(self._parts.frozen, self._parts.setting, self.state, jax.device_put(batch))
        return figures["loss"]

    @property
    def programs(self) -> int:
        """How many the step has been compiled to."""
        return len(self._shapes)

    def wait(self) -> None:
        """Returns when the last step is done."""
        jax.block_until_ready(self.state)


def largest_difference(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> float:
    """Of arrays by name, relative to the largest value of all.

    Raises:
      RuntimeError: one side has arrays that the other has not.
    """
    if missing := set(ours) ^ set(peer):
        raise RuntimeError(f"on one side only: {', '.join(sorted(missing))}")
    largest = max(np.abs(np.asarray(a)).max() for a in peer.values())
    return max(float(np.abs(np.asarray(ours[name]) - np.asarray(a)).max() / largest) for name, a in peer.items())
