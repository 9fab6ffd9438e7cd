"""Items scored by the likelihood of their titles after a history that is written as a prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.inference.generate.cached import Weights
from llm4rec_jax.inference.generate.candidates import CandidateScorer
from llm4rec_jax.inference.scorer import Prompts, RowScorer
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.peft.core import Peft


class TitleLikelihoodScorer:
    """Scores items by log P(title | prompt). A run makes one; `of` gives it parameters.

    Args:
      encoder: A decoder, loaded with `language_head=True`.
      method: Parameter-efficient method of the decoder, not `within` a part.
      mesh: The devices.
      titles: Tokens of the title of each item [I], as they stand after a prompt.
      prompts: Writes histories as prompts.
      normalize_length: Whether a log-likelihood is divided by the number of the title's tokens.
    """

    def __init__(
        self,
        encoder: Encoder,
        method: Peft,
        mesh: Mesh,
        titles: Sequence[Sequence[int]],
        prompts: Prompts,
        normalize_length: bool = False,
    ) -> None:
        self._candidates, self._prompts = CandidateScorer(encoder, method, mesh, titles), prompts
        self.lengths = self._candidates.lengths
        self._divisor = self.lengths.astype(np.float32) if normalize_length else np.ones(len(titles), np.float32)

    def of(self, params: Any, delta: Any, *_: Any) -> "BoundTitleScorer":
        """Returns the scorer with the parameters {"encoder": …} and the arrays that the method trains in it."""
        return BoundTitleScorer(self, (params["encoder"], delta["encoder"]))

    def all(self, weights: Weights, history: Sequences, users: np.ndarray) -> np.ndarray:
        """Returns the scores [n, I] of all items for users in rows [n]."""
        return self._candidates.all(weights, self._written(history, users)) / self._divisor

    def some(self, weights: Weights, history: Sequences, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Returns the scores [n, T] of items in rows [n, T] for users in rows [n]."""
        return self._candidates.some(weights, self._written(history, users), items) / self._divisor[items]

    def _written(self, history: Sequences, users: np.ndarray) -> Tokens:
        ids, mask = (np.asarray(array) for array in self._prompts([history.of(user) for user in users], users))
        return Tokens(ids, mask.sum(axis=1).astype(np.int32))


class BoundTitleScorer(RowScorer):
    """A `TitleLikelihoodScorer` with its parameters: a `Scorer`."""

    def __init__(self, scorer: TitleLikelihoodScorer, weights: Weights) -> None:
        self._scorer, self._weights, self.num_items = scorer, weights, len(scorer.lengths)

    def user_embeddings(self, item_embeddings: np.ndarray, history: Sequences, users: np.ndarray) -> np.ndarray:
        return self._scorer.all(self._weights, history, users)

    def score(self, history: Sequences, users: np.ndarray, items: np.ndarray, *, mesh: Mesh) -> np.ndarray:
        return self._scorer.some(self._weights, history, users, items)
