"""A configuration's training step as `train` makes it, out of its loop: to be timed, or only compiled."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.data.batching.batch import Batch
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.schema import table
from llm4rec_jax.sharding import make_mesh
from llm4rec_jax.tasks.ranking import RankingTask
from llm4rec_jax.training.step import TrainStep
from llm4rec_jax.training.task import Params, partition_params


class Parts(NamedTuple):
    """The parts of a step, which is called as `step.step(frozen, step.setting, state, batch)`."""

    task: RankingTask
    step: TrainStep
    frozen: dict[str, Any]
    trainable: dict[str, Any]


def parts(
    assembly: Assembly, params: Mapping[str, Any], dropout: bool = True, mesh: jax.sharding.Mesh | None = None
) -> Parts:
    """Returns the step of a configuration, without cached states; `params` may be shapes only.

    Args:
      assembly: Assembly of the configuration.
      params: All parameters at the start.
      dropout: False turns it off.
      mesh: Devices; all by default.
    """
    config = dataclasses.replace(assembly.train_config, dropout=dropout)
    task = RankingTask(
        assembly.model,
        assembly.method,
        params,
        assembly.split,
        config,
        loss=table(assembly.config, "loss"),
        tokens=assembly.tokens,
        prompts=assembly.prompts,
    )
    task.bind(mesh or make_mesh())
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))

    def split(params: Mapping[str, Any]) -> Params:
        return partition_params(assembly.method, params, key)

    trainable, frozen = jax.eval_shape(split, params) if abstract else split(params)
    task.plan(Params(trainable, frozen))
    step = TrainStep(task, config, trainable)
    return Parts(task, step, {"params": frozen, "text": None, "states": None}, trainable)


class Stepper:
    """Steps one after another, as the loop makes them: the next is given out before this one is done."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._update, self._setting = jax.jit(parts.step.step, donate_argnums=2), parts.step.setting
        self._shapes: set[tuple[Any, ...]] = set()
        own = jax.tree.map(jnp.copy, parts.trainable)
        self.state = jax.jit(parts.step.start)(self._setting, own)

    def __call__(self, batch: Batch) -> jax.Array:
        """A step; the loss, which may not have been computed yet."""
        self._shapes.add(tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch)))
        self.state, figures = self._update(self._parts.frozen, self._setting, self.state, jax.device_put(batch))
        return figures["loss"]

    @property
    def programs(self) -> int:
        """Number of programs that the step has been compiled to."""
        return len(self._shapes)

    def wait(self) -> None:
        """Returns when the last step is done."""
        jax.block_until_ready(self.state)


def largest_difference(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> float:
    """Returns the largest difference between arrays of one name, relative to the largest absolute value of `peer`.

    Raises:
      RuntimeError: one side has arrays that the other has not.
    """
    if missing := set(ours) ^ set(peer):
        raise RuntimeError(f"on one side only: {', '.join(sorted(missing))}")
    largest = max(np.abs(np.asarray(a)).max() for a in peer.values())
    return max(float(np.abs(np.asarray(ours[name]) - np.asarray(a)).max() / largest) for name, a in peer.items())
