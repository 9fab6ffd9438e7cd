"""The interface between the training loop and a task, and the outcomes of a run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.sites import parts_of
from llm4rec_jax.training.throughput import BatchStats


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite. The message names the step, the batch and the last good checkpoint."""


class Params(NamedTuple):
    """Parameters of a task in two parts.

    Attributes:
      trainable: {"delta": the method's own, "params": parts of the model that are trained}.
      frozen: Parts of the model that no step changes.
    """

    trainable: dict[str, Any]
    frozen: dict[str, Any]


class TrainResult(NamedTuple):
    """The best state of a finished run.

    Attributes:
      trainable: {"delta": …, "params": …} at the best validation.
      frozen: {"params": …} and the constants that `Task.prepare` computed.
      best_step: Step of the best validation.
      best_value: Value of the validation metric there.
      step: Last step of the run.
    """

    trainable: dict[str, Any]
    frozen: dict[str, Any]
    best_step: int
    best_value: float
    step: int


class CheckpointableIterator(Protocol):
    """An endless stream of batches whose position can be saved and set."""

    def __next__(self) -> Any: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...

    def close(self) -> None: ...


class LoopTask(Protocol):
    """The part of a task that the training loop uses: parameters, constants and batches.

    Attributes:
      method: Parameter-efficient method, whose `optimizer` wraps the one for its delta.
      metrics: Names of the validation metrics that can decide which state is the best.
      compute_dtype: Type that most of the work is computed in, for the device's peak rate.
      notes: Lines for the user about what the loop is going to do.
    """

    @property
    def method(self) -> Peft: ...

    @property
    def metrics(self) -> Sequence[str]: ...

    @property
    def compute_dtype(self) -> Any: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def bind(self, mesh: Mesh) -> None:
        """Fixes the devices. Called once, before anything else."""
        ...

    def init(self, key: jax.Array) -> Params:
        """Returns all parameters at the start."""
        ...

    def constant_shapes(self, params: Params) -> dict[str, Any]:
        """Returns the shapes of what `prepare` computes, so that a step can be compiled meanwhile."""
        ...

    def prepare(self, params: Params) -> dict[str, Any]:
        """Returns constants that are computed once a run: text vectors, hidden states. Unused ones are None."""
        ...

    def batches(self, seed: int) -> CheckpointableIterator:
        """Returns the stream of training batches, on the host."""
        ...

    def place(self, batch: Any) -> Any:
        """Returns a batch on the mesh."""
        ...

    def text_shapes(self, batch: Any) -> Sequence[tuple[int, int]]:
        """Returns (number of texts, padded number of tokens) of each group that a step encodes for a placed batch."""
        ...


class Task(LoopTask, Protocol):
    """A definition of what is learned and how it is measured. Nothing else is known of it in training.

    Attributes:
      batch_size: Examples in a batch.
      batch_axes: Axis of the runs in each field of a batch, for runs in one program; None where they share a field.
    """

    @property
    def batch_size(self) -> int: ...

    @property
    def batch_axes(self) -> Any: ...

    def place_together(self, batches: Sequence[Any]) -> Any:
        """Returns batches of several runs on the mesh, stacked by `batch_axes`."""
        ...

    def loss(
        self,
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Any,
        key: jax.Array | None,
        item_micro_batch: int,
    ) -> jax.Array:
        """Returns the mean loss over a batch.

        Args:
          trainable, frozen: Parameters, and constants of `prepare`.
          batch: The batch.
          key: Key of dropout; None turns it off.
          item_micro_batch: Number of texts that are encoded at a time, to save memory; 0 encodes all at once.
        """
        ...

    def evaluate(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, float]:
        """Returns the validation metrics of a state."""
        ...

    def batch_stats(self, batch: Any) -> BatchStats:
        """Counts the tokens, padding and unique items of a batch on the host."""
        ...

    def describe_batch(self, batch: Any) -> str:
        """Names the users of a batch, for the error about a loss that is not finite."""
        ...


def partition_params(method: Peft, params: Mapping[str, Any], key: jax.Array) -> Params:
    """Splits parameters into those that are trained and those that are frozen.

    The encoder and whatever else the method adapts are frozen, and the method's delta is trained in their place.

    Args:
      method: Method for the whole model, e.g. `within(lora, "encoder")`.
      params: All parameters by part: {"encoder": …, "users": …, …}.
      key: Key of the delta's random numbers.
    """
    delta = method.init(key, params)
    adapted = {"encoder", *parts_of(delta)}
    trained = {name: part for name, part in params.items() if name not in adapted}
    frozen = {name: part for name, part in params.items() if name in adapted}
    return Params({"delta": delta, "params": trained}, frozen)
