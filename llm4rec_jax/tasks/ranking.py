"""Next-item ranking: a recommender learns to score the item that comes next above the others."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.batching.batch import Batch
from llm4rec_jax.data.batching.buckets import ANY
from llm4rec_jax.data.batching.builder import BatchBuilder, BatchOptions, training_batches
from llm4rec_jax.data.batching.masking import ClozeMasking
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.splits.split import Split
from llm4rec_jax.evaluation import metrics
from llm4rec_jax.evaluation.evaluate import evaluate
from llm4rec_jax.inference.batch_sizes import group_cost
from llm4rec_jax.inference.ranks import Ranks
from llm4rec_jax.inference.scorer import Prompts, RecommenderScorer
from llm4rec_jax.losses import LOSSES, Loss
from llm4rec_jax.models.recommender import Recommender
from llm4rec_jax.options import check, option
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.sites import constant_below
from llm4rec_jax.tasks.ranking_objective import Objective
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.placement import place_batch, place_together
from llm4rec_jax.training.task import CheckpointableIterator, Params, partition_params
from llm4rec_jax.training.throughput import BatchStats, batch_stats

KS = (5, 10, 20)
"""Cut-offs of the validation metrics."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Options of a configuration's `loss` table.

    Example:
      >>> LossConfig("bpr", num_negatives=4).alpha
      0.0
    """

    name: str = option("full_softmax")
    """Name of the loss; see `losses.LOSSES`."""
    num_negatives: int = option(1, low=0)
    """Number of sampled items that a target is compared with (K); for "mixed_negatives" that a batch draws."""
    alpha: float = option(0.0, low=0.0)
    """Power of the popularity that negatives are drawn by; 0 draws uniformly."""
    temperature: float | None = option(None, above=0.0)
    """For "info_nce": divisor of the scores; None is 1."""
    calibration: float | None = option(None, low=0.0, high=1.0)
    """For "gbce": t, the share of the overconfidence from sampling that is taken back; None is 0.75."""
    label_threshold: float | None = option(None)
    """For "bce_pointwise": a rating at or above it is a positive."""

    def __post_init__(self) -> None:
        check(self, "config.loss")


class RankingTask:
    """Learns to rank the next item, and validates by ranking the whole catalogue.

    Args:
      model: A recommender.
      method: Adapts the encoder or another part; bring a method for the bare encoder `within(method, "encoder")`.
      params: All parameters at the start, those of the pretrained encoder among them.
      split: Training and validation data.
      config: Options of the run.
      loss: Options of the loss.
      tokens: The catalogue's texts; None where items are ids only.
      prompts: Writes histories as text, for a user model that reads prompts.
      ks: Cut-offs of the validation metrics.
      state_cache_bytes: Hidden states below the lowest trained block are computed once when they are no larger.
      scorer: Scorer of the model on the task's devices, whose programs are used, and its columns of features; one
        without columns is made by default.

    Raises:
      ValueError: Options that do not go together.
    """

    def __init__(
        self,
        model: Recommender,
        method: Peft,
        params: Mapping[str, Any],
        split: Split,
        config: TrainConfig,
        *,
        loss: LossConfig | None = None,
        tokens: Tokens | None = None,
        prompts: Prompts | None = None,
        ks: Sequence[int] = KS,
        state_cache_bytes: int = 2**31,
        scorer: RecommenderScorer | None = None,
    ) -> None:
        self.model, self.method, self.split, self.batch_size = model, method, split, config.batch_size
        self._params, self._config, self._loss = params, config, loss or LossConfig()
        self._tokens, self._prompts, self._ks, self._state_cache_bytes = tokens, prompts, ks, state_cache_bytes
        self._scorer = scorer
        self._chosen = chosen_loss(self._loss, int(split.known.sum()))
        self._parts = config.micro_batches or 1
        self._encoder = None if model.text is None else model.text.encoder.config
        self.compute_dtype = jnp.float32 if self._encoder is None else self._encoder.dtype
        self.metrics = metric_names(ks)
        self.notes: list[str] = []
        _check_loss(self._loss, self._chosen.negatives, split)

    # ------------------------------------------------------------------------------------------------- what is trained
    def bind(self, mesh: Mesh) -> None:
        """Fixes the devices; ValueError where they cannot share a batch."""
        check_batch_size(self._config, mesh)
        self._mesh = mesh
        self.scorer = self._scorer or RecommenderScorer(
            self.model, self.method, mesh, self._tokens, self._prompts, self._config.history
        )

    def init(self, key: jax.Array) -> Params:
        """Returns the parameters at the start."""
        params = partition_params(self.method, self._params, key)
        self.plan(params)
        return params

    def plan(self, params: Params) -> None:
        """Finds out which of the encoder's states no step changes; `params` may be shapes only."""
        c, dropout = self._encoder, self._config.dropout
        # Dropout in the encoder makes its states differ from step to step; without it some of them are constants.
        deterministic = c is not None and (not dropout or c.dropout == 0)
        depth = 0 if c is None else c.num_hidden_layers
        first_trained, reads_all = (0, False) if c is None else constant_below(params.trainable["delta"], depth)
        frozen_encoder = c is not None and first_trained == depth and not reads_all
        self._constant_text = deterministic and frozen_encoder and "pooling" not in self._params
        if self.scorer.standardizes and (not self._constant_text or self._prompts is not None):
            raise ValueError(
                "config.encoder.center and whiten change vectors of items that are computed once: give "
                "config.peft.method=frozen, no dropout in the encoder and a user model that reads items, or leave them "
                "out"
            )
        self._layer = None if reads_all else first_trained
        self._caches_states = False
        if c is not None and first_trained and self._tokens is not None and deterministic and not self._constant_text:
            states = self.scorer.shape_of_states(self._layer)
            self._caches_states = states.size * c.dtype.itemsize <= self._state_cache_bytes
        self._objective = Objective(
            self.model,
            self.method,
            self._chosen,
            self._loss.label_threshold,
            self._layer,
            self._mesh,
            self._parts,
        )
        if self._caches_states:
            what = f"has nothing to train in its first {first_trained} blocks"
            self.notes = [
                f"the encoder {'is only read from beside' if reads_all else what}: each text passes there once"
            ]

    def constant_shapes(self, params: Params) -> dict[str, Any]:
        """Returns the shapes of text vectors [I, W], cached states [I, L, W] and columns; None where not used."""
        return {
            "text": self.scorer.shape_of_text() if self._constant_text else None,
            "states": self.scorer.shape_of_states(self._layer) if self._caches_states else None,
            "columns": jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), self.scorer.columns),
        }

    def prepare(self, params: Params) -> dict[str, Any]:
        """Computes the vectors of a frozen encoder, or the states below the lowest trained block."""
        weights, delta = {**params.frozen, **params.trainable["params"]}, params.trainable["delta"]
        return {
            "text": self.scorer.text(weights, delta) if self._constant_text else None,
            "states": self.scorer.states(weights, delta, self._layer) if self._caches_states else None,
            "columns": self.scorer.columns,
        }

    # ----------------------------------------------------------------------------------------------------------- input
    def batches(self, seed: int) -> CheckpointableIterator:
        """Returns the stream of training batches."""
        builder, dataset = self.input(seed)
        self.notes = [f"{len(builder.examples.user):,} examples an epoch", *self.notes]
        return iter(dataset)

    def input(self, seed: int) -> tuple[BatchBuilder, grain.IterDataset]:
        """Returns the builder of batches, and the dataset that it makes; see `training_batches`."""
        users, config = self.model.users, self._config
        knows_users = users.inputs == "user_id"
        options = BatchOptions(
            batch_size=config.batch_size,
            history=1 if knows_users else config.history,
            every_position=self._prompts is None and not knows_users,
            negatives=self._chosen.negatives,
            num_negatives=self._loss.num_negatives,
            alpha=self._loss.alpha,
            ratings=self._chosen.negatives == "none",
            predict_first=knows_users,
            masking=None if users.masking is None else ClozeMasking(*users.masking),
            compact_targets=self._mesh.size == 1 and self._parts == 1,
            group_cost=group_cost(self._mesh),
            max_tokens=ANY if self._encoder is None else self._encoder.max_position_embeddings,
        )
        return training_batches(
            self.split,
            options,
            tokens=None if self._constant_text else self._tokens,
            prompts=self._prompts,
            seed=seed,
            shard=(jax.process_index(), jax.process_count()),
            multiple_of=self._mesh.shape["data"],
            workers=config.input_workers or 0,
        )

    def place(self, batch: Batch) -> Batch:
        """Splits a batch over the data axis."""
        return place_batch(batch, self._mesh)

    @property
    def batch_axes(self) -> Batch:
        """Axis of the runs in each field: a whole catalogue is the same in all of them, and held once."""
        shared = ("items", "tokens", "candidates") if self._chosen.negatives == "catalogue" else ()
        return Batch._make(None if name in shared else 0 for name in Batch._fields)

    def place_together(self, batches: Sequence[Batch]) -> Batch:
        """Stacks batches of several runs."""
        return place_together(batches, self.batch_axes, self._mesh)

    # ------------------------------------------------------------------------------------------------ loss and metrics
    def loss(
        self,
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Batch,
        key: jax.Array | None,
        item_micro_batch: int = 0,
    ) -> jax.Array:
        """Returns the mean loss over the batch's targets, and the method's penalty."""
        return self._objective(trainable, frozen, batch, key, item_micro_batch)

    def text_shapes(self, batch: Batch) -> list[tuple[int, int]]:
        """Returns texts and tokens of each group of the batch's items."""
        return [(ids.shape[-2], ids.shape[-1]) for ids, _ in batch.tokens]

    def evaluate(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, float]:
        """Ranks the whole catalogue for every user of the validation part."""
        return evaluate(self.bound(trainable, frozen), self.split, "validation", mesh=self._mesh, ks=self._ks).summary

    def bound(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> Any:
        """Returns the scorer with these parameters."""
        weights = {**frozen["params"], **trainable["params"]}
        return self.scorer.of(weights, trainable["delta"], frozen["text"], frozen["states"])

    def batch_stats(self, batch: Batch) -> BatchStats:
        """Counts tokens, padding and unique items."""
        return batch_stats(batch)

    def describe_batch(self, batch: Batch) -> str:
        """Names up to twenty users of a batch."""
        names = self.split.dataset.users["user_id"].gather(np.asarray(batch.users)).to_list()
        return f"the users {', '.join(names[:20])}{' …' if len(names) > 20 else ''}"


def chosen_loss(config: LossConfig, num_items: int) -> Loss:
    """Returns the loss that a configuration names, with its options.

    Raises:
      ValueError: There is no such loss, or it has no such option.
    """
    loss = LOSSES.lookup(config.name)
    options = {"temperature": config.temperature, "calibration": config.calibration}
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if not loss.takes(name):
            takers = ", ".join(other for other, candidate in LOSSES.items() if candidate.takes(name))
            raise ValueError(f"config.loss.{name} is an option of {takers}, but the loss is {config.name!r}")
    return loss.bind(**given, num_items=num_items)


def check_batch_size(config: TrainConfig, mesh: Mesh) -> None:
    """Raises ValueError where the devices cannot share a batch equally."""
    devices, parts = mesh.shape["data"], config.micro_batches or 1
    if config.batch_size % (devices * parts):
        in_parts = f" in {parts} micro-batches" if parts > 1 else ""
        raise ValueError(
            f"config.train.batch_size is {config.batch_size}: {devices} devices on the data axis cannot share that"
            f"{in_parts}; give a multiple of {devices * parts}"
        )


def metric_names(ks: Sequence[int] = KS) -> list[str]:
    """Returns the names of the metrics of a ranking; `users*` entries are counts, not metrics."""
    one = np.ones(1, np.int64)
    _, summary = metrics.evaluate_ranks(Ranks(np.array([0, 1]), one, one - 1, one + 1), ks)
    return [name for name in summary if not name.startswith("users")]


def _check_loss(loss: LossConfig, negatives: str, split: Split) -> None:
    """Raises ValueError for what would otherwise come out only after the first steps, or never."""
    if not len(split.validation):
        raise ValueError(f"nothing to validate on: under {split.protocol!r} the validation part is empty")
    if negatives in ("sampled", "mixed") and loss.num_negatives < 1:
        raise ValueError(
            f"num_negatives is {loss.num_negatives}, but the loss {loss.name!r} compares with sampled items: give 1 or "
            "more"
        )
    if loss.label_threshold is not None and loss.name != "bce_pointwise":
        raise ValueError(f"label_threshold makes labels for the loss 'bce_pointwise', but the loss is {loss.name!r}")
    ratings = split.dataset.interactions.rating
    if (
        loss.name == "bce_pointwise"
        and loss.label_threshold is None
        and ratings is not None
        and (ratings.min() < 0 or ratings.max() > 1)
    ):
        raise ValueError(
            f"the loss 'bce_pointwise' takes labels between 0 and 1, but ratings go from {ratings.min():g} to "
            f"{ratings.max():g}: give label_threshold, at or above which a rating is a positive"
        )
