"""The part of a task that all tasks on labeled examples share: order of the examples, and validation by AUC."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llm4rec_jax.data.labeled import LabeledData
from llm4rec_jax.evaluation import rating_metrics
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.tasks.examples import ExampleTask
from llm4rec_jax.training.config import TrainConfig

METRICS = ("auc", "gauc", "log_loss", "accuracy")


class LabeledTask(ExampleTask):
    """A task on labeled examples. A subclass defines `loss`, `prepare`, `batches`, `scores` and counts of a batch.

    Args:
      method: Parameter-efficient method, brought `within` the encoder.
      params: Parameters of all parts: {"encoder": …, …}.
      data: The labeled examples.
      config: Options of the run.
      num_train: Number of examples that are trained on.
    """

    metrics = METRICS

    def __init__(
        self, method: Peft, params: Mapping[str, Any], data: LabeledData, config: TrainConfig, num_train: int
    ) -> None:
        super().__init__(method, params, data.users, config, num_train)
        self._data = data

    def evaluate(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics of the validation part."""
        scores = self.scores(trainable, frozen["params"], "validation")
        summary = rating_metrics.evaluate(scores, self._data, self._data.validation).summary
        return {name: summary[name] for name in METRICS}

    def scores(self, trainable: Any, frozen: Any, part: str) -> np.ndarray:
        """Returns the logits of a part's examples [n], by a state over the frozen parameters."""
        raise NotImplementedError


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
