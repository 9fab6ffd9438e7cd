"""One training step: a state and a batch to the next state."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.optimizer import averaged, optimizer
from llm4rec_jax.training.rates import rate_factors
from llm4rec_jax.training.task import Task


class TrainStep:
    """The training step of a task.

    A *setting* holds what runs that share a program may differ in: the key, the learning rate and the weight decay. It
    is an argument of the compiled program, so that `training.population` can map over it.

    Args:
      task: Task whose loss is minimised.
      config: Options of the run.
      trainable: Tree that is trained; only its structure is used.

    Raises:
      ValueError: A learning rate concerns nothing that is trained, or the options of the schedule do not fit.
    """

    def __init__(self, task: Task, config: TrainConfig, trainable: Any) -> None:
        self._task, self._config = task, config
        # Only names and shapes are needed from here on.
        self._shapes = jax.eval_shape(lambda tree: tree, trainable)
        self._optimizer(self.setting)  # raises for options that do not fit

    @property
    def setting(self) -> dict[str, jax.Array]:
        """Key data, learning rate and weight decay as arrays."""
        return {
            # Several processes cannot place a typed key.
            "key": jax.random.key_data(jax.random.key(self._config.seed)),
            "learning_rate": jnp.float32(self._config.learning_rate),
            "weight_decay": jnp.float32(self._config.weight_decay),
        }

    def _optimizer(self, setting: Mapping[str, Any]) -> optax.GradientTransformation:
        config = self._config
        return optimizer(
            self._task.method,
            self._shapes,
            learning_rate=setting["learning_rate"],
            steps=config.steps,
            schedule_kind=config.schedule,
            warmup=config.warmup,
            weight_decay=setting["weight_decay"],
            clip=config.clip or None,
            accumulate=config.accumulate,
            factors=rate_factors(
                self._shapes,
                setting["learning_rate"],
                rates=config.rates,
                layer_decay=config.layer_decay,
                scales=config.scale_by_regex,
            ),
            name=config.optimizer or "adamw",
            head_only=config.freeze_encoder_steps or 0,
        )

    def start(self, setting: Mapping[str, Any], trainable: Any) -> dict[str, Any]:
        """Returns the state before the first step; an "average" is what is evaluated in place of "trainable"."""
        moments = self._optimizer(setting).init(trainable)
        state = {"step": jnp.zeros((), jnp.int32), "trainable": trainable, "opt_state": moments}
        if self._config.ema is None and self._config.optimizer != "schedule_free_adamw":
            return state
        return {**state, "average": jax.tree.map(jnp.copy, trainable)}

    def step(
        self, frozen: Any, setting: Mapping[str, Any], state: dict[str, Any], batch: Any, item_micro_batch: int = 0
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """Returns the next state, and the loss, the gradient's norm and the norm of the new arrays.

        For `item_micro_batch` see `Task.loss`.
        """
        key = jax.random.wrap_key_data(setting["key"])
        dropout = jax.random.fold_in(jax.random.fold_in(key, 2), state["step"]) if self._config.dropout else None
        value, grads = jax.value_and_grad(self._task.loss)(state["trainable"], frozen, batch, dropout, item_micro_batch)
        updates, opt_state = self._optimizer(setting).update(grads, state["opt_state"], state["trainable"])
        state = {
            **state,
            "step": state["step"] + 1,
            "trainable": optax.apply_updates(state["trainable"], updates),
            "opt_state": opt_state,
        }
        if self._config.ema is not None:
            # The first step's weight is 1: the average is not drawn to the start.
            weight = (1 - self._config.ema) / (1 - self._config.ema ** state["step"])
            state["average"] = optax.incremental_update(state["trainable"], state["average"], weight)
        elif "average" in state:
            state["average"] = averaged(opt_state, state["trainable"])
        norms = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(state["trainable"])}
        return state, {"loss": value, **norms}

    def jitted(self, layout: Any, replicated: Any) -> jax.stages.Wrapped:
        """Returns the compiled step; it gives the memory of its state away."""
        static = "item_micro_batch"
        return jax.jit(self.step, donate_argnums=2, static_argnames=static, out_shardings=(layout, replicated))
