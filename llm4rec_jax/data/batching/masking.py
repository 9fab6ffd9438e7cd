"""Masking of positions for user encoders that fill gaps in a history, as BERT4Rec does."""

from typing import NamedTuple

import numpy as np


class ClozeMasking(NamedTuple):
    """The masking of positions of a window, as in BERT4Rec (Sun et al. 2019, CIKM).

    Attributes:
      mask_prob: probability that a position is hidden.
      mask_last_prob: probability that only the last position of a window is hidden, which is what the model is asked
        for in evaluation.
    """

    mask_prob: float
    mask_last_prob: float


def draw_masked_positions(masking: ClozeMasking, eligible: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws the positions to hide; every window hides at least one, its last eligible position.

    Args:
      masking: the probabilities.
      eligible: bool [B, T], positions that may be hidden: training targets inside the window.
      rng: generator of the draw.

    Returns:
      bool [B, T].

    Example:
      >>> eligible = np.array([[True, True, False], [True, True, True]])
      >>> draw_masked_positions(ClozeMasking(0.0, 0.0), eligible, np.random.default_rng(0)).tolist()
      [[False, True, False], [False, False, True]]
    """
    column = np.arange(eligible.shape[1])
    # [[T, T, F], [T, T, T]] * [0, 1, 2] has the row maxima 1 and 2: the last eligible columns.
    last = eligible & (column == np.max(eligible * column, axis=1, keepdims=True))
    drawn = eligible & (rng.random(eligible.shape) < masking.mask_prob)
    drawn = drawn & (rng.random((len(eligible), 1)) >= masking.mask_last_prob)
    # A window with nothing hidden would teach nothing.
    return np.where(drawn.any(axis=1, keepdims=True), drawn, last)
