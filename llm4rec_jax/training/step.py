"""One step of training: a state and a batch to the next state."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm4rec_jax.data.batching.batch import Batch
from llm4rec_jax.tasks.ranking_objective import Objective


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """What a step is made of. A setting is what runs differ in: see `runs.settings`.

    Attributes:
      objective: what is minimised.
      optimizer: of a setting.
      dropout: False turns every dropout off.
    """

    objective: Objective
    optimizer: Callable[[Mapping[str, Any]], optax.GradientTransformation]
    dropout: bool

    def start(self, setting: Mapping[str, Any], trainable: Any) -> dict[str, Any]:
        """The state before the first step."""
        moments = self.optimizer(setting).init(trainable)
        return {"step": jnp.zeros((), jnp.int32), "trainable": trainable, "opt_state": moments}

    def step(
        self, frozen: Any, setting: Mapping[str, Any], state: dict[str, Any], batch: Batch
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """The next state, and the loss and norms of this one's gradient and the next one's arrays."""
        key = jax.random.wrap_key_data(setting["key"])
        at = jax.random.fold_in(jax.random.fold_in(key, 2), state["step"]) if self.dropout else None
        value, grads = jax.value_and_grad(self.objective)(state["trainable"], frozen, batch, at)
        updates, opt_state = self.optimizer(setting).update(grads, state["opt_state"], state["trainable"])
        state = {
            "step": state["step"] + 1,
            "trainable": optax.apply_updates(state["trainable"], updates),
            "opt_state": opt_state,
        }
        norms = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(state["trainable"])}
        return state, {"loss": value, **norms}
