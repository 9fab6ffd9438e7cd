"""Items scored by one prompt that lists them with letters, as in LLMRank (Hou et al. 2024, arXiv 2305.08845).

A language model favours places of a list, whatever stands there. Each list is therefore read in several orders, and an
item's probability is averaged over them.
"""

import string
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.inference.generate.cached import Weights
from llm4rec_jax.inference.generate.likelihood import AnswerScorer
from llm4rec_jax.inference.scorer import RowScorer
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.peft.core import Peft

WriteLists = Callable[[Sequence[np.ndarray], np.ndarray, Sequence[str]], Tokens]
"""(histories, user rows, lists as texts) to the tokens of their prompts."""


def lettered(titles: Sequence[str]) -> str:
    """Writes a list of at most 26 titles with letters, one a line.

    Example:
      >>> lettered(["Heat", "Jaws"])
      'A. Heat\\nB. Jaws'
    """
    return "\n".join(f"{letter}. {title}" for letter, title in zip(string.ascii_uppercase, titles, strict=False))


def rotations(count: int, orders: int, seed: int) -> np.ndarray:
    """Returns orders of a list: rotations of a drawn one, so that an item stands at places far apart.

    Args:
      count: Number of items T.
      orders: Number of orders K; with K = T each item stands once at each place.
      seed: Seed of the first order.

    Returns:
      [K, T] numbers of the items by place.
    """
    first = np.random.default_rng(seed).permutation(count)
    return np.stack([np.roll(first, k * count // orders) for k in range(orders)])


def position_bias(probabilities: np.ndarray) -> float:
    """Returns how far the mean probabilities of places [n, T] are from equal: their total variation distance.

    0 is no bias. Near 1 one place takes all, whatever stands there.

    Example:
      >>> position_bias(np.array([[1.0, 0.0], [1.0, 0.0]])), position_bias(np.array([[1.0, 0.0], [0.0, 1.0]]))
      (0.5, 0.0)
    """
    mean = probabilities.mean(axis=0)
    return float(np.abs(mean - 1 / len(mean)).sum() / 2)


class ListwiseScorer:
    """Scores listed items by the probability of their letters, over those of the list. `of` gives it parameters.

    Args:
      encoder: A decoder, loaded with `language_head=True`.
      method: Parameter-efficient method of the decoder, not `within` a part.
      mesh: The devices.
      titles: Titles of the items [I].
      letters: Tokens of the letters A, B, … as they stand after a prompt.
      write: Writes prompts.
      orders: Number of orders in which each list is read.
    """

    def __init__(
        self,
        encoder: Encoder,
        method: Peft,
        mesh: Mesh,
        titles: Sequence[str],
        letters: Sequence[Sequence[int]],
        write: WriteLists,
        orders: int,
    ) -> None:
        self._parts, self.titles, self._letters = (encoder, method, mesh), titles, letters
        self._write, self._orders = write, orders

    def of(self, params: Any, delta: Any, *_: Any) -> "BoundListwiseScorer":
        """Returns the scorer with the parameters {"encoder": …} and the arrays that the method trains in it."""
        return BoundListwiseScorer(self, (params["encoder"], delta["encoder"]))

    def probabilities(
        self, weights: Weights, history: Sequences, users: np.ndarray, items: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns probabilities [n, K, T] of places, and the orders [n, K, T] in which items [n, T] were listed."""
        count = items.shape[1]
        if count > len(self._letters):
            raise ValueError(f"a list has {count} items, and there are {len(self._letters)} letters: rank fewer")
        orders = np.stack([rotations(count, self._orders, int(user)) for user in users])
        listed = np.take_along_axis(items[:, None], orders, axis=2).reshape(-1, count)
        texts = [lettered([self.titles[int(item)] for item in row]) for row in listed.tolist()]
        each = np.repeat(users, self._orders)
        prompts = self._write([history.of(user) for user in each], each, texts)
        scores = AnswerScorer(*self._parts, self._letters[:count])(weights, prompts)
        found = np.asarray(jax.nn.softmax(scores, axis=1))
        return found.reshape(len(users), self._orders, count), orders


class BoundListwiseScorer(RowScorer):
    """A `ListwiseScorer` with its parameters: a `Scorer` of a few drawn items.

    Attributes:
      position_bias: Bias in the last call of `score`; see the function of this name.
    """

    def __init__(self, scorer: ListwiseScorer, weights: Weights) -> None:
        self._scorer, self._weights, self.num_items = scorer, weights, len(scorer.titles)
        self.position_bias = float("nan")

    def user_embeddings(self, item_embeddings: np.ndarray, history: Sequences, users: np.ndarray) -> np.ndarray:
        """Raises ValueError: no prompt lists a whole catalogue."""
        raise ValueError(
            "a prompt that lists candidates has no scores of a whole catalogue: rank drawn candidates, by "
            "config.evaluation.candidates=sampled_20"
        )

    def score(self, history: Sequences, users: np.ndarray, items: np.ndarray, *, mesh: Mesh) -> np.ndarray:
        """Returns the mean probabilities [n, T] over the orders."""
        found, orders = self._scorer.probabilities(self._weights, history, users, items)
        self.position_bias = position_bias(found.reshape(-1, items.shape[1]))
        # Place j of an order holds item orders[j]; argsort gives the place of each item.
        return np.take_along_axis(found, np.argsort(orders, axis=2), axis=2).mean(axis=1)
