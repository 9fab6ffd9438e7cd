"""Prompt scoring: a language model reads a history as a question and answers it, as in TALLRec (arXiv 2305.00447)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.batching.buckets import token_bucket
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.labeled import LabeledData
from llm4rec_jax.inference.generate.likelihood import Answered, AnswerScorer, join
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.options import option
from llm4rec_jax.peft.core import Peft, within
from llm4rec_jax.tasks.answers import AnswerLoss
from llm4rec_jax.tasks.labeled import LabeledTask, ShuffledBatches
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.task import CheckpointableIterator


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Prompts that a language model answers; `text.user` of a configuration is their template."""

    answers: tuple[str, ...] | list[str] = option((" Yes", " No"))
    """Texts right after a prompt that mean a like and a dislike."""
    examples: int = option(0, low=0)
    """Number of first training examples that stand with their answers before every prompt; they are not trained on."""
    separator: str = option("\n\n")
    """Text after the answer of each of these examples."""
    vectors_from: str | None = option(None)
    """Task prompt_scoring: folder of a trained ranking run on the same items, whose item vectors become tokens where
    `text.item` has the field {item_vector}. None has none."""
    title: str = option(" {title}\n")
    """Task title_likelihood: text of an item right after a prompt; {title} is its title."""
    orders: int | None = option(None, low=1)
    """Task title_likelihood: number of orders in which one prompt lists all candidates, each with a letter, in place of
    scoring each title; `text.user` then has the field {candidates}. None lists none."""
    normalize_length: bool = option(False)
    """Task title_likelihood: whether the log-likelihood of a title is divided by its number of tokens."""


class PromptScoringTask(AnswerLoss, LabeledTask):
    """Learns the answers to prompts by the loss of a language model, and validates by AUC.

    The logit of a like is log P(first answer | prompt) - log P(second answer | prompt). The loss is the mean
    cross-entropy over the tokens of the right answers; tokens of prompts are not learned.

    Args:
      encoder: A decoder, loaded with `language_head=True`.
      method: Parameter-efficient method of the decoder, not `within` a part.
      params: {"encoder": …}.
      data: The labeled examples.
      prompts: Tokens of the prompts by part: train, validation and test.
      answers: Tokens of the answers of a like and of a dislike.
      config: Options of the run.
      shown: Number of first training examples that stand in every prompt, and are not trained on.

    Raises:
      ValueError: A prompt with its answer has more tokens than the encoder has positions.
    """

    def __init__(
        self,
        encoder: Encoder,
        method: Peft,
        params: Mapping[str, Any],
        data: LabeledData,
        prompts: Mapping[str, Tokens],
        answers: Sequence[Sequence[int]],
        config: TrainConfig,
        shown: int = 0,
    ) -> None:
        super().__init__(within(method, "encoder"), params, data, config, data.train.size - shown)
        self._encoder, self._bare, self._prompts, self._answers = encoder, method, prompts, answers
        self._shown, self.compute_dtype = shown, encoder.config.dtype
        longest, most = max(map(len, answers)), encoder.config.max_position_embeddings
        for part, tokens in prompts.items():
            if (length := int(tokens.lengths.max()) + longest) > most:
                raise ValueError(
                    f"a prompt of the {part} part has {length} tokens with its answer, and the encoder has {most} "
                    "positions: lower config.text.max_prompt_tokens"
                )

    def bind(self, mesh: Mesh) -> None:
        """Fixes the devices; the programs of scoring are kept where they are the same."""
        if self._mesh != mesh:
            self._mesh, self._scorer = mesh, AnswerScorer(self._encoder, self._bare, mesh, self._answers)

    def batches(self, seed: int) -> CheckpointableIterator:
        """Returns the stream of training batches."""
        rows, prompts, longest = self._data.train, self._prompts["train"], max(map(len, self._answers))

        def make(drawn: np.ndarray) -> Answered:
            drawn = drawn + self._shown
            read = Tokens(prompts.ids[drawn], prompts.lengths[drawn])
            length = token_bucket(int(read.lengths.max()) + longest, self._encoder.config.max_position_embeddings)
            which = np.where(rows.label[drawn] > 0, 0, 1)
            return join(read, self._answers, which, length)._replace(users=rows.user[drawn])

        return ShuffledBatches(rows.size - self._shown, self.batch_size, seed, make)

    def scores(self, trainable: Any, frozen: Any, part: str) -> np.ndarray:
        """Returns the logits of a part's examples [n], by a state over the frozen parameters."""
        weights = frozen["encoder"], trainable["delta"]["encoder"]
        likelihoods = self._scorer(weights, self._prompts[part]).astype(np.float64)
        return likelihoods[:, 0] - likelihoods[:, 1]
