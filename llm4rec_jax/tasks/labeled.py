"""The part of a task that all tasks on labeled examples share: order of the examples, placement, validation by AUC."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from llm4rec_jax import sharding
from llm4rec_jax.data.labeled import LabeledData
from llm4rec_jax.evaluation import rating_metrics
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.task import Params, partition_params

METRICS = ("auc", "gauc", "log_loss", "accuracy")


class LabeledTask:
    """A task on labeled examples. A subclass defines `loss`, `prepare`, `batches`, `scores` and counts of a batch.

    Batches are NamedTuples of arrays whose field `users`, the rows of the user table, stays on the host.

    Args:
      method: Parameter-efficient method, brought `within` the encoder.
      params: Parameters of all parts: {"encoder": …, …}.
      data: The labeled examples.
      config: Options of the run.
      num_train: Number of examples that are trained on.
    """

    metrics = METRICS
    batch_axes = 0
    """Axis of the runs in every field of a batch."""

    def __init__(
        self, method: Peft, params: Mapping[str, Any], data: LabeledData, config: TrainConfig, num_train: int
    ) -> None:
        self.method, self._params, self._data, self._config = method, params, data, config
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

    def evaluate(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics of the validation part."""
        scores = self.scores(trainable, frozen["params"], "validation")
        summary = rating_metrics.evaluate(scores, self._data, self._data.validation).summary
        return {name: summary[name] for name in METRICS}

    def scores(self, trainable: Any, frozen: Any, part: str) -> np.ndarray:
        """Returns the logits of a part's examples [n], by a state over the frozen parameters."""
        raise NotImplementedError

    def describe_batch(self, batch: Any) -> str:
        """Names up to twenty users of a batch."""
        names = list(dict.fromkeys(self._data.users["user_id"].gather(np.asarray(batch.users)).to_list()))
        return f"the users {', '.join(names[:20])}{' …' if len(names) > 20 else ''}"


class ShuffledBatches:
    """Batches of examples in an order that is drawn anew each epoch; its position is the number of batches made.

    Args:
      num_examples: Number of examples n.
      size: Number of examples in a batch.
      seed: Seed of the orders.
      make: Makes the batch of the examples with these numbers.
    """

    def __init__(self, num_examples: int, size: int, seed: int, make: Callable[[np.ndarray], Any]) -> None:
        self._num_examples, self._size, self._seed, self._make, self._position = num_examples, size, seed, make, 0

    def __next__(self) -> Any:
        epoch, place = divmod(self._position, self._num_examples // self._size)
        self._position += 1
        order = np.random.default_rng([self._seed, epoch]).permutation(self._num_examples)
        return self._make(order[place * self._size : (place + 1) * self._size])

    def get_state(self) -> int:
        return self._position

    def set_state(self, state: int) -> None:
        self._position = state

    def close(self) -> None:
        """Holds nothing that must be ended."""
