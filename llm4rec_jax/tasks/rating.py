"""Rating: a head learns from labeled examples whether a user likes an item, given likes and dislikes of a history."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.labeled import LabeledData, LabeledExamples
from llm4rec_jax.losses.ranking import LOSSES, reduce_mean
from llm4rec_jax.peft.core import forward
from llm4rec_jax.tasks.labeled import LabeledTask, ShuffledBatches
from llm4rec_jax.tasks.parts import map_parts
from llm4rec_jax.tasks.rating_scoring import Questions, Reader, batch, logits, scorer
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.task import CheckpointableIterator, Params
from llm4rec_jax.training.throughput import BatchStats


class RatingTask(LabeledTask):
    """Learns the ratings of labeled examples by the pointwise loss, and validates by AUC.

    Args:
      head: One of `models.rating.RATING_HEADS`, made.
      reader: Reads the texts.
      params: {"encoder": …, "answers": the head's, …}.
      data: The labeled examples.
      prompts: By part, train and validation, the text numbers of the examples' prompts [n].
      config: Options of the run.
    """

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
        super().__init__(reader.method, params, data, config, data.train.size)
        self._head, self._reader, self._prompts = head, reader, prompts
        # Whether each rating of a history is trained on too, from the others. A prompt has one rating only.
        self._every = config.histories and not reader.prompts
        self._ratings = np.float32(_distinct_ratings(data.train) if self._every else data.train.size)
        self._loss = LOSSES.lookup("bce_pointwise")

    def bind(self, mesh: Mesh) -> None:
        """Fixes the devices; the programs of scoring are kept where they are the same."""
        if self._mesh != mesh:
            self._mesh, self._scores = mesh, scorer(self._head, self._reader, mesh)

    def constant_shapes(self, params: Params) -> dict[str, Any]:
        """Returns the shape of the text vectors [T, W] of an encoder that is not trained."""
        vectors = self._reader.vectors
        return {"text": None if vectors is None else jax.ShapeDtypeStruct(vectors.shape, vectors.dtype)}

    def prepare(self, params: Params) -> dict[str, Any]:
        """Returns the text vectors."""
        return {"text": self._reader.vectors}

    def batches(self, seed: int) -> CheckpointableIterator:
        """Returns the stream of training batches."""

        def make(drawn: np.ndarray) -> Questions:
            made = batch(self._data.train.take(drawn), self._prompts["train"][drawn], self._reader)
            return made._replace(ratings=self._ratings)

        return ShuffledBatches(self._data.train.size, self.batch_size, seed, make)

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


def _distinct_ratings(rows: LabeledExamples) -> int:
    """Counts the different ratings in examples: consecutive ones share most of their histories."""
    users = np.broadcast_to(rows.user[:, None], rows.mask.shape)[rows.mask]
    history = np.column_stack([users, rows.history[rows.mask]])
    return len(np.unique(np.concatenate([history, np.column_stack([rows.user, rows.target])]), axis=0))
