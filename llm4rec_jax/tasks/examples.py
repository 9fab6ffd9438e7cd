"""The part of a task that all tasks share whose examples are arrays on every process: parameters and placement."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jax.sharding import NamedSharding, PartitionSpec

from llm4rec_jax import sharding
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.task import Params, partition_params


class ExampleTask:
    """A task whose batches are NamedTuples of arrays with a field `users`, rows of the user table on the host only.

    Args:
      method: Parameter-efficient method, brought `within` the encoder.
      params: Parameters of all parts: {"encoder": …, …}.
      users: The user table, with a column `user_id`.
      config: Options of the run.
      num_train: Number of examples that are trained on.
    """

    batch_axes = 0
    """Axis of the runs in every field of a batch."""

    def __init__(
        self, method: Peft, params: Mapping[str, Any], users: pl.DataFrame, config: TrainConfig, num_train: int
    ) -> None:
        self.method, self._params, self._users, self._config = method, params, users, config
        self.batch_size = min(config.batch_size, num_train)
        self.notes = [f"{num_train:,} examples an epoch"]
        self._mesh: Any = None

    def init(self, key: jax.Array) -> Params:
        """Returns the parameters at the start."""
        return partition_params(self.method, self._params, key)

    def place(self, batch: Any) -> Any:
        """Splits the arrays over the data axis where it divides them; every process holds the whole batch."""
        return jax.tree.map(self._put, batch._replace(users=None))

    def place_together(self, batches: Sequence[Any]) -> Any:
        """Stacks batches of several runs, which may differ in how many texts they hold and how long these are."""

        def stacked(*arrays: Any) -> jax.Array:
            if not np.ndim(arrays[0]):
                return jnp.stack(arrays)
            shape = np.max([array.shape for array in arrays], axis=0)
            return jnp.stack(
                [np.pad(a, [(0, int(n) - m) for n, m in zip(shape, a.shape, strict=True)]) for a in arrays]
            )

        return jax.tree.map(stacked, *(batch._replace(users=None) for batch in batches))

    def _put(self, array: np.ndarray) -> jax.Array:
        divides = np.ndim(array) and len(array) % self._mesh.shape["data"] == 0
        return sharding.put(array, NamedSharding(self._mesh, PartitionSpec("data") if divides else PartitionSpec()))

    def describe_batch(self, batch: Any) -> str:
        """Names up to twenty users of a batch."""
        names = list(dict.fromkeys(self._users["user_id"].gather(np.asarray(batch.users)).to_list()))
        return f"the users {', '.join(names[:20])}{' …' if len(names) > 20 else ''}"
