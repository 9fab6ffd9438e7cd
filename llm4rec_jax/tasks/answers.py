"""The part of a task that learns texts after prompts: the loss of a language model on the answers alone."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from llm4rec_jax.inference.generate.likelihood import Answered, log_likelihood
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.tasks.parts import map_parts
from llm4rec_jax.training.task import Params
from llm4rec_jax.training.throughput import BatchStats


class AnswerLoss:
    """Loss and counts of a task whose batches are `Answered`. No part of a prompt is computed before training.

    The task has its method `within` the encoder as `method`, the bare one as `_bare`, and `_encoder` and `_mesh`.
    """

    method: Peft
    _bare: Peft
    _encoder: Encoder
    _mesh: Any

    def constant_shapes(self, params: Params) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def prepare(self, params: Params) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def loss(
        self,
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Answered,
        key: jax.Array | None,
        item_micro_batch: int = 0,
    ) -> jax.Array:
        """Returns the mean loss over the tokens of the answers, and the method's penalty."""
        delta = trainable["delta"]
        weights = frozen["params"]["encoder"], delta["encoder"]

        def likelihoods(texts: Answered, key: jax.Array | None) -> jax.Array:
            rngs = None if key is None else {"dropout": key}
            return log_likelihood(self._encoder, self._bare, weights, texts, rngs)

        parts = -(-len(batch.ids) // item_micro_batch) if item_micro_batch else 0
        sums = map_parts(likelihoods, batch, key, parts, self._mesh) if parts else likelihoods(batch, key)
        return -sums.sum() / batch.counts.sum() + self.method.penalty(delta)

    def text_shapes(self, batch: Answered) -> list[tuple[int, int]]:
        """Returns the number of prompts and of tokens."""
        return [(batch.ids.shape[-2], batch.ids.shape[-1])]

    def batch_stats(self, batch: Answered) -> BatchStats:
        """Counts tokens, padding, and the prompts."""
        mask = np.asarray(batch.mask)
        return BatchStats(int(mask.sum()), mask.size, len(mask), len(mask))
