"""Title likelihood: a language model reads a history as a prompt and learns the title of the next item."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.batching.batch import Batch
from llm4rec_jax.data.batching.buckets import token_bucket
from llm4rec_jax.data.batching.builder import BatchOptions, training_batches
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.splits.split import Split
from llm4rec_jax.evaluation.evaluate import Candidates, evaluate
from llm4rec_jax.inference.generate.likelihood import Answered, join
from llm4rec_jax.inference.listwise import ListwiseScorer
from llm4rec_jax.inference.scorer import Prompts
from llm4rec_jax.inference.title_likelihood import TitleLikelihoodScorer
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.peft.core import Peft, within
from llm4rec_jax.tasks.answers import AnswerLoss
from llm4rec_jax.tasks.examples import ExampleTask
from llm4rec_jax.tasks.ranking import KS, check_batch_size, metric_names
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.task import CheckpointableIterator


class TitleLikelihoodTask(AnswerLoss, ExampleTask):
    """Learns the titles of next items by the loss of a language model, and validates by ranking.

    The loss is the mean cross-entropy over the tokens of the titles; tokens of prompts are not learned.

    Args:
      encoder: A decoder, loaded with `language_head=True`.
      method: Parameter-efficient method of the decoder, not `within` a part.
      params: {"encoder": …}.
      split: Training and validation data.
      titles: Tokens of the title of each item [I], as they stand after a prompt.
      prompts: Writes histories as prompts.
      config: Options of the run.
      scorer: Scores items by their titles, or by letters in a list of them.
      candidates: Items that are ranked in validation; see `evaluate`.

    Raises:
      ValueError: There is nothing to validate on.
    """

    def __init__(
        self,
        encoder: Encoder,
        method: Peft,
        params: Mapping[str, Any],
        split: Split,
        titles: Sequence[Sequence[int]],
        prompts: Prompts,
        config: TrainConfig,
        *,
        scorer: TitleLikelihoodScorer | ListwiseScorer,
        candidates: Candidates = "all",
    ) -> None:
        super().__init__(within(method, "encoder"), params, split.dataset.users, config, config.batch_size)
        self._encoder, self._bare, self.compute_dtype = encoder, method, encoder.config.dtype
        self.split, self._titles, self._prompts = split, titles, prompts
        self._scorer = scorer
        self._candidates: Candidates = candidates
        self.metrics = metric_names(KS)
        self.notes = []
        if not len(split.validation):
            raise ValueError(f"nothing to validate on: under {split.protocol!r} the validation part is empty")

    def bind(self, mesh: Mesh) -> None:
        """Fixes the devices; ValueError where they cannot share a batch."""
        check_batch_size(self._config, mesh)
        self._mesh = mesh

    def batches(self, seed: int) -> CheckpointableIterator:
        """Returns the stream of training batches: each example is a prompt and the title of the item after it."""
        options = BatchOptions(
            batch_size=self._config.batch_size,
            history=self._config.history,
            every_position=False,
            negatives="none",
            num_negatives=0,
        )
        builder, dataset = training_batches(self.split, options, seed=seed, workers=self._config.input_workers or 0)
        self.notes = [f"{len(builder.examples.user):,} examples an epoch"]
        return _Written(iter(dataset), self._write)

    def _write(self, batch: Batch) -> Answered:
        items, mask = np.asarray(batch.items), np.asarray(batch.history_mask)
        read = [items[row][real] for row, real in zip(np.asarray(batch.history), mask, strict=True)]
        users, targets = np.asarray(batch.users), items[np.asarray(batch.target)[:, 0]]
        ids, real = (np.asarray(array) for array in self._prompts(read, users))
        titles = [self._titles[item] for item in targets]
        lengths = real.sum(axis=1).astype(np.int32)
        # One bucket of titles for all batches, so that few programs are compiled.
        longest = max(map(len, self._titles))
        length = token_bucket(int(lengths.max()) + longest, self._encoder.config.max_position_embeddings)
        made = join(Tokens(ids, lengths), titles, np.arange(len(titles)), length)
        more = ((0, 0), (0, longest - made.answer.shape[1]))
        return made._replace(answer=np.pad(made.answer, more), counts=np.pad(made.counts, more), users=users)

    def evaluate(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, float]:
        """Ranks the candidates for every user of the validation part."""
        bound = self._scorer.of(frozen["params"], trainable["delta"])
        found = evaluate(bound, self.split, "validation", mesh=self._mesh, ks=KS, candidates=self._candidates)
        return found.summary


class _Written:
    """A stream of batches whose histories and targets are written as texts."""

    def __init__(self, batches: Any, write: Any) -> None:
        self._batches, self._write = batches, write

    def __next__(self) -> Answered:
        return self._write(next(self._batches))

    def get_state(self) -> Any:
        return self._batches.get_state()

    def set_state(self, state: Any) -> None:
        self._batches.set_state(state)

    def close(self) -> None:
        self._batches.close()
