"""Generation: a model learns to write the semantic id of the item that comes next."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from llm4rec_jax.data.batching.batch import Batch
from llm4rec_jax.data.batching.builder import BatchOptions, training_batches
from llm4rec_jax.data.splits.split import Split
from llm4rec_jax.evaluation.evaluate import evaluate
from llm4rec_jax.inference.generative import GenerativeScorer
from llm4rec_jax.losses.ranking import reduce_mean
from llm4rec_jax.models.generators import GENERATORS, IdGenerator
from llm4rec_jax.options import option
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.semantic_ids import SemanticIds
from llm4rec_jax.tasks.ranking import KS, check_batch_size, metric_names
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.placement import place_batch, place_together
from llm4rec_jax.training.task import CheckpointableIterator, Params, partition_params
from llm4rec_jax.training.throughput import BatchStats, batch_stats


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """A model that generates the semantic id of the next item, in place of a recommender that compares vectors."""

    ids: str | None = option(None)
    """Path of the items' ids, an *.index.json; None compares vectors."""
    shift: int | None = option(None)
    """Number that is added to a key of the file to give the item id; None is 0."""
    resolve: bool | None = option(None)
    """Whether a further level tells items of one id apart, which None does too; otherwise they have one score."""
    model: str | None = option(None, choices=tuple(sorted(GENERATORS)))
    """Generator, see `models.generators.GENERATORS`; None is "tiger"."""
    options: dict[str, Any] = option({})
    """Options of the generator: the sizes of its network."""
    beams: int | None = option(None, low=1)
    """Number of beams of the search, None is 20; a target that they do not reach is missed."""


class GenerationTask:
    """Learns the likelihood of the next item's codes, and validates by beam search over the whole catalogue.

    Args:
      model: The generator.
      method: A method that adapts nothing: a generator is trained whole.
      params: {"generator": …} at the start.
      ids: Ids of the catalogue.
      split: Training and validation data.
      config: Options of the run.
      scorer: Searches ids with the model.
      ks: Cut-offs of the validation metrics.
    """

    compute_dtype = jnp.float32

    def __init__(
        self,
        model: IdGenerator,
        method: Peft,
        params: Mapping[str, Any],
        ids: SemanticIds,
        split: Split,
        config: TrainConfig,
        *,
        scorer: GenerativeScorer,
        ks: Sequence[int] = KS,
    ) -> None:
        self.model, self.method, self.split, self.batch_size = model, method, split, config.batch_size
        self._params, self._codes, self._config, self._scorer, self._ks = params, ids.codes, config, scorer, ks
        self.metrics = metric_names(ks)
        self.notes: list[str] = []
        if not len(split.validation):
            raise ValueError(f"nothing to validate on: under {split.protocol!r} the validation part is empty")
        if (asked := config.micro_batches) not in (None, 1):
            raise ValueError(
                f"config.train.micro_batches is {asked}, but a batch of ids is computed whole: leave it out"
            )

    # ------------------------------------------------------------------------------------------------- what is trained
    def bind(self, mesh: Mesh) -> None:
        """Fixes the devices; ValueError where they cannot share a batch."""
        check_batch_size(self._config, mesh)
        self._mesh = mesh

    def init(self, key: jax.Array) -> Params:
        """Returns the parameters at the start."""
        return partition_params(self.method, self._params, key)

    def constant_shapes(self, params: Params) -> dict[str, Any]:
        """Returns the shape of the codes [I, L]."""
        return {"codes": jax.ShapeDtypeStruct(self._codes.shape, np.int32)}

    def prepare(self, params: Params) -> dict[str, Any]:
        """Returns the codes of the catalogue."""
        return {"codes": self._codes}

    # ----------------------------------------------------------------------------------------------------------- input
    def batches(self, seed: int) -> CheckpointableIterator:
        """Returns the stream of training batches."""
        options = BatchOptions(
            batch_size=self._config.batch_size,
            history=self._config.history,
            every_position=self.model.every_position,
            negatives="none",
            num_negatives=0,
        )
        builder, dataset = training_batches(
            self.split,
            options,
            seed=seed,
            shard=(jax.process_index(), jax.process_count()),
            multiple_of=self._mesh.shape["data"],
            workers=self._config.input_workers or 0,
        )
        self.notes = [f"{len(builder.examples.user):,} examples an epoch"]
        return iter(dataset)

    def place(self, batch: Batch) -> Batch:
        """Splits a batch over the data axis."""
        return place_batch(batch, self._mesh)

    @property
    def batch_axes(self) -> Batch:
        """Axis of the runs in each field."""
        return Batch._make(0 for _ in Batch._fields)

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
        """Returns the negative log-likelihood of an item's codes, mean over the targets."""
        codes = frozen["codes"][batch.items]
        targets = codes[batch.target]
        logits = self.model.apply(
            {"params": trainable["params"]["generator"]},
            codes[batch.history],
            batch.history_mask,
            targets,
            method="code_logits",
            rngs=None if key is None else {"dropout": key},
        )
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(own, targets[..., level])
            for level, own in enumerate(logits)
        ]
        return reduce_mean(sum(losses), batch.target_mask)  # pyright: ignore[reportArgumentType]

    def text_shapes(self, batch: Batch) -> list[tuple[int, int]]:
        """Returns nothing: no text is encoded."""
        return []

    def evaluate(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, float]:
        """Searches the whole catalogue for every user of the validation part."""
        ranker = self._scorer.of(trainable["params"])
        return evaluate(ranker, self.split, "validation", mesh=self._mesh, ks=self._ks).summary

    def batch_stats(self, batch: Batch) -> BatchStats:
        """Counts tokens, padding and unique items; a token is a code."""
        levels, masks = self._codes.shape[1], (np.asarray(batch.history_mask), np.asarray(batch.target_mask))
        return batch_stats(batch)._replace(
            tokens=levels * sum(int(mask.sum()) for mask in masks), token_places=levels * sum(m.size for m in masks)
        )

    def describe_batch(self, batch: Batch) -> str:
        """Names up to twenty users of a batch."""
        names = self.split.dataset.users["user_id"].gather(np.asarray(batch.users)).to_list()
        return f"the users {', '.join(names[:20])}{' …' if len(names) > 20 else ''}"
