"""Rating: a head learns from labeled examples whether a user likes an item, given likes and dislikes of a history."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm4rec_jax import sharding
from llm4rec_jax.data.labeled import LabeledData, LabeledExamples
from llm4rec_jax.evaluation import rating_metrics
from llm4rec_jax.losses.ranking import LOSSES, reduce_mean
from llm4rec_jax.peft.core import forward
from llm4rec_jax.tasks.parts import map_parts
from llm4rec_jax.tasks.rating_scoring import Questions, Reader, batch, logits, scorer
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.task import CheckpointableIterator, Params, partition_params
from llm4rec_jax.training.throughput import BatchStats

METRICS = ("auc", "gauc", "log_loss", "accuracy")


class RatingTask:
    """Learns the ratings of labeled examples by the pointwise loss, and validates by AUC.

    Args:
      head: One of `models.rating.RATING_HEADS`, made.
      reader: Reads the texts.
      params: {"encoder": …, "answers": the head's, …}.
      data: The labeled examples.
      prompts: By part, train and validation, the text numbers of the examples' prompts [n].
      config: Options of the run.
    """

    metrics = METRICS
    compute_dtype = jnp.float32

    def __init__(
        self,
        head: nn.Module,
        reader: Reader,
        params: Mapping[str, Any],
        data: LabeledData,
        prompts: Mapping[str, np.ndarray],
        config: TrainConfig,
    ) -> None:
        self._head, self._reader, self._params, self._data, self._prompts = head, reader, params, data, prompts
        self._config, self.method = config, reader.method
        self.batch_size = min(config.batch_size, data.train.size)
        self.notes = [f"{data.train.size:,} examples an epoch"]
        # Whether each rating of a history is trained on too, from the others. A prompt has one rating only.
        self._every = config.histories and not reader.prompts
        self._ratings = np.float32(_distinct_ratings(data.train) if self._every else data.train.size)
        self._loss = LOSSES.lookup("bce_pointwise")
        self._mesh: Any = None

    def bind(self, mesh: Mesh) -> None:
        """Fixes the devices; the programs of scoring are kept where they are the same."""
        if self._mesh != mesh:
            self._mesh, self._scores = mesh, scorer(self._head, self._reader, mesh)

    def init(self, key: jax.Array) -> Params:
        """Returns the parameters at the start."""
        return partition_params(self.method, self._params, key)

    def constant_shapes(self, params: Params) -> dict[str, Any]:
        """Returns the shape of the text vectors [T, W] of an encoder that is not trained."""
        vectors = self._reader.vectors
        return {"text": None if vectors is None else jax.ShapeDtypeStruct(vectors.shape, vectors.dtype)}

    def prepare(self, params: Params) -> dict[str, Any]:
        """Returns the text vectors."""
        return {"text": self._reader.vectors}

    def batches(self, seed: int) -> CheckpointableIterator:
        """Returns the stream of training batches."""
        return _Shuffled(self._data.train, self._prompts["train"], self._reader, self.batch_size, self._ratings, seed)

    def place(self, batch: Questions) -> Questions:
        """Splits the arrays over the data axis where it divides them; every process holds the whole batch."""
        return jax.tree.map(self._put, batch._replace(users=None))

    @property
    def batch_axes(self) -> int:
        """Axis of the runs."""
        return 0

    def place_together(self, batches: Sequence[Questions]) -> Questions:
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

    def loss(
        self,
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Questions,
        key: jax.Array | None,
        item_micro_batch: int = 0,
    ) -> jax.Array:
        """Returns the mean loss over the ratings, the prior on the head, and the method's penalty."""
        vectors, reader = frozen["text"], self._reader
        if batch.texts is not None:
            weights = {**frozen["params"], **trainable["params"]}

            def encode(texts: Any, key: jax.Array | None = None) -> jax.Array:
                return forward(reader.model, reader.method, weights, trainable["delta"], *texts)

            parts = -(-len(batch.texts[0]) // item_micro_batch) if item_micro_batch else 0
            vectors = map_parts(encode, batch.texts, None, parts, self._mesh) if parts else encode(batch.texts)
        head = trainable["params"]["answers"]
        scores, labels, counts = logits(self._head, head, reader.centre, vectors, batch, self._every)
        pairs = zip(*map(jax.tree.leaves, (head, self._params["answers"])), strict=True)
        moved = sum(jnp.square(a - b).sum() for a, b in pairs)
        prior = self._config.l2_to_init / 2 * moved / batch.ratings + self.method.penalty(trainable["delta"])
        return reduce_mean(self._loss(scores, labels), counts) + prior

    def text_shapes(self, batch: Questions) -> list[tuple[int, int]]:
        """Returns the number of texts and of tokens."""
        return [] if batch.texts is None else [(batch.texts[0].shape[-2], batch.texts[0].shape[-1])]

    def evaluate(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics of the validation part."""
        scores = self.scores(trainable, frozen["params"], "validation")
        summary = rating_metrics.evaluate(scores, self._data, self._data.validation).summary
        return {name: summary[name] for name in METRICS}

    def scores(self, trainable: Any, frozen: Any, part: str) -> np.ndarray:
        """Returns the logits of a part's examples [n], by a state over the frozen parameters."""
        return self._scores(trainable, frozen, self._data.parts()[part], self._prompts[part])

    def batch_stats(self, batch: Questions) -> BatchStats:
        """Counts texts, padding, and the items of histories and targets, told apart by text numbers."""
        mask, read = np.asarray(batch.mask) > 0, np.asarray(batch.target)
        if batch.history is not None:
            read = np.concatenate([np.asarray(batch.history)[mask], read])
        texts = np.zeros((0, 0)) if batch.texts is None else np.asarray(batch.texts[1])
        return BatchStats(int(texts.sum()), texts.size, len(np.unique(read)), len(read))

    def describe_batch(self, batch: Questions) -> str:
        """Names up to twenty users of a batch."""
        names = list(dict.fromkeys(self._data.users["user_id"].gather(np.asarray(batch.users)).to_list()))
        return f"the users {', '.join(names[:20])}{' …' if len(names) > 20 else ''}"


class _Shuffled:
    """Batches of examples in an order that is drawn anew each epoch; its position is the number of batches made."""

    def __init__(
        self, rows: LabeledExamples, prompts: np.ndarray, reader: Reader, size: int, ratings: np.float32, seed: int
    ) -> None:
        self._rows, self._prompts, self._reader, self._ratings = rows, prompts, reader, ratings
        self._size, self._seed, self._position = size, seed, 0

    def __next__(self) -> Questions:
        epoch, place = divmod(self._position, self._rows.size // self._size)
        self._position += 1
        order = np.random.default_rng([self._seed, epoch]).permutation(self._rows.size)
        drawn = order[place * self._size : (place + 1) * self._size]
        return batch(self._rows.take(drawn), self._prompts[drawn], self._reader)._replace(ratings=self._ratings)

    def get_state(self) -> int:
        return self._position

    def set_state(self, state: int) -> None:
        self._position = state

    def close(self) -> None:
        """Holds nothing that must be ended."""


def _distinct_ratings(rows: LabeledExamples) -> int:
    """Counts the different ratings in examples: consecutive ones share most of their histories."""
    users = np.broadcast_to(rows.user[:, None], rows.mask.shape)[rows.mask]
    history = np.column_stack([users, rows.history[rows.mask]])
    return len(np.unique(np.concatenate([history, np.column_stack([rows.user, rows.target])]), axis=0))
