"""Options of a training run."""

import dataclasses
import re
from collections.abc import Mapping

from llm4rec_jax.options import check, option

SCHEDULES = ("constant", "linear", "cosine")
OPTIMIZERS = ("adamw", "lion", "muon", "schedule_free_adamw")


@dataclasses.dataclass(frozen=True)
class PartRates:
    """Highest learning rates of parts of the model; None leaves a part at `learning_rate`."""

    encoder: float | None = option(None, low=0.0)
    """Arrays that the method trains in the language model, and its pooling."""
    items: float | None = option(None, low=0.0)
    """Projection of text vectors, and vectors of ids."""
    users: float | None = option(None, low=0.0)
    """User encoder."""
    head: float | None = option(None, low=0.0)
    """Scoring or rating head."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Options of a training run: the keys of a configuration's `train` table, and the seed.

    Every value is checked against its type and range when the object is made.

    Raises:
      ValueError: A value has another type or lies outside its range.

    Example:
      >>> TrainConfig(steps=60, learning_rate=3e-3).eval_every
      100
    """

    seed: int = option(0, low=0, below=2**32)
    """Seed of initialisation, order, negatives and dropout."""
    steps: int = option(1000, low=0)
    """Number of batches; with 0 a run is evaluated as it starts."""
    batch_size: int = option(128, low=1)
    """Number of examples in a batch (B), over all devices."""
    history: int = option(100, low=1)
    """Longest history that is read (H)."""
    input_workers: int | None = option(None, low=0)
    """Number of processes that make batches; None or 0 makes them in threads."""
    dropout: bool = option(True)
    """Whether dropout is on; False turns every dropout off."""
    learning_rate: float = option(1e-3, low=0.0)
    """Highest learning rate of the schedule."""
    schedule: str = option("constant", choices=SCHEDULES)
    """Shape of the learning rate after the warm-up."""
    warmup: int = option(0, low=0)
    """Number of batches over which the learning rate rises from zero."""
    optimizer: str | None = option(None, choices=OPTIMIZERS)
    """Name of the optimizer; None is "adamw". See `training.optimizer`."""
    rates: PartRates = PartRates()
    """Learning rates of parts of the model."""
    layer_decay: float | None = option(None, above=0.0, high=1.0)
    """Factor on the learning rate from a block of the encoder to the one below; None is 1."""
    freeze_encoder_steps: int | None = option(None, low=0)
    """Number of first batches in which the method's own arrays rest; then their warm-up and schedule begin."""
    ema: float | None = option(None, low=0.0, below=1.0)
    """Decay of an exponential moving average of what is trained, which is evaluated and saved; None keeps none."""
    weight_decay: float = option(0.0, low=0.0)
    """Decoupled weight decay of arrays with two axes or more: biases and norms do not decay."""
    clip: float | None = option(1.0, low=0.0)
    """Largest global norm of the gradient; 0 or None turns clipping off."""
    accumulate: int = option(1, low=1)
    """Number of batches whose mean gradient makes one update."""
    micro_batches: int | None = option(None, low=1)
    """Number of parts in which a batch's users are computed one after another; None computes them at once."""
    item_micro_batch: int | str = option("auto", low=0)
    """Number of texts that a tuned encoder reads at a time, and again for their gradients; 0 reads all at once. "auto"
    does so where they fit the device's memory, and else takes the largest power of two that does."""
    scales: str | Mapping[str, float] = option("")
    """Factors on the learning rate by regex: "regex=factor" joined by spaces, or a mapping."""
    eval_every: int = option(100, low=1)
    """Number of steps between validations."""
    metric: str = option("ndcg@10")
    """Validation metric that decides which state is the best."""
    patience: int | None = option(None, low=1)
    """Number of validations without a better one after which training stops; None never stops early."""
    log_every: int = option(10, low=1)
    """Number of steps between training records."""
    checkpoint_every: int = option(100, low=1)
    """Number of steps between checkpoints."""
    histories: bool = option(True)
    """Whether the rating task also learns from the ratings of the history."""
    l2_to_init: float = option(0.0, low=0.0)
    """Precision of a Gaussian prior on the rating head's parameters around their start."""

    def __post_init__(self) -> None:
        check(self, "config.train")
        _ = self.scale_by_regex, self.texts_at_once
        if self.warmup > self.steps:
            raise ValueError(f"config.train.warmup is a warm-up of {self.warmup} steps in a run of {self.steps}")
        if self.warmup + (self.freeze_encoder_steps or 0) > self.steps:
            raise ValueError(
                f"config.train.freeze_encoder_steps is {self.freeze_encoder_steps}: with a warm-up of {self.warmup} "
                f"steps nothing is left of a run of {self.steps}"
            )
        if not self.learning_rate and any(rate is not None for rate in dataclasses.astuple(self.rates)):
            raise ValueError("config.train.learning_rate is 0, but config.train.rates has rates: give one above 0")
        if self.optimizer == "schedule_free_adamw":
            self._check_schedule_free()

    def _check_schedule_free(self) -> None:
        for name, value, allowed in (
            ("schedule", self.schedule, "constant"),
            ("ema", self.ema, None),
            ("freeze_encoder_steps", self.freeze_encoder_steps or None, None),
        ):
            if value != allowed:
                raise ValueError(
                    f"config.train.{name} is {value!r}, but schedule_free_adamw averages all steps in place of a "
                    f"schedule: give {allowed!r}"
                )

    @property
    def texts_at_once(self) -> int | None:
        """Number of texts that are encoded at a time; 0 for all, None for what fits."""
        value = str(self.item_micro_batch)
        if value != "auto" and not value.isdecimal():
            raise ValueError(
                f"config.train.item_micro_batch is {value!r}, must be auto or a number of texts, 0 for all"
            )
        return None if value == "auto" else int(value)

    @property
    def scale_by_regex(self) -> dict[str, float]:
        """Factors on the learning rate by regex, in order."""
        if isinstance(self.scales, Mapping):
            return dict(self.scales)
        factors = {}
        for pair in self.scales.split():
            pattern, _, factor = pair.rpartition("=")
            try:
                factors[re.compile(pattern).pattern] = float(factor)
            except ValueError:
                raise ValueError(f"config.train.scales: {pair!r} is not of the form regex=factor") from None
            except re.error as error:
                raise ValueError(f"config.train.scales: {pattern!r} is no regular expression: {error}") from None
        return factors
