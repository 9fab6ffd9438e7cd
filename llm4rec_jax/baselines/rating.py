"""Baselines of the pointwise task: fitted to questions, they give other questions a score."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.data.labeled import LabeledExamples
from llm4rec_jax.registry import Registry

Floats = NDArray[np.float64]

Predictor = Callable[[LabeledExamples], Floats]
"""Questions to scores [n], which are logits: their sigmoid is the probability of a like."""


class Features(NamedTuple):
    """Features of the items.

    Attributes:
      size: Number I of items.
      texts: vectors of their texts, [I, W] each; none where nothing reads them.
      number: a number of each [I], such as the year, NaN where it is not known; None without.
    """

    size: int
    texts: tuple[Floats, ...] = ()
    number: Floats | None = None


ANSWER_BASELINES: Registry[Callable[..., Predictor]] = Registry("baseline of the pointwise task")
"""Called as `fit(train, features, **options)`."""


def laplace_logit(rows: LabeledExamples) -> Floats:
    """log((likes + 1) / (dislikes + 1)) of each history, [n]: Laplace's rule of succession, as a logit."""
    likes = (rows.liked & rows.mask).sum(1)
    return np.log((likes + 1.0) / (rows.mask.sum(1) - likes + 1.0))


@ANSWER_BASELINES.register("liked_share")
def liked_share(train: LabeledExamples, features: Features) -> Predictor:
    """Scores by the share of liked items in the history, whatever the target is; nothing is fitted."""
    return laplace_logit
