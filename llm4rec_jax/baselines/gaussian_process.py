"""A hierarchical Gaussian process over answers: what all like, who likes much, and who likes what.

Rasmussen & Williams 2006, chapter 2, with labels as targets of regression (their section 6.5). The answer y ∈ {0, 1} of
user u to item i is

    y = μ + g(i) + b_u + t_u(i) + ε

    g   ~ GP(0, quality · K + item · I)   how much an item is liked
    b_u ~ N(0, bias)                      how much a user likes
    t_u ~ GP(0, taste · K)                what this user likes more than others do
    ε   ~ N(0, noise)

with K a kernel over items, `item_kernel`. All is linear and Gaussian, so the posterior is in closed form.
"""

from collections.abc import Sequence

import numpy as np

from llm4rec_jax.baselines.rating import ANSWER_BASELINES, Features, Floats, Predictor
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.labeled import LabeledExamples

# Questions that are answered at once: a block [n, H + 1, H + 1].
_BLOCK = 1024


def item_kernel(features: Features, lengths: Sequence[float], number_weight: float) -> Floats:
    """K [I, I]: the mean over texts of exp((cos(x, x') - 1) / length²), plus number_weight · z z'.

    cos is of centred vectors, so that the first part is the squared-exponential kernel on the unit sphere; z is the
    standardised number, 0 where it is not known. Without texts an item resembles itself only.

    Raises:
      ValueError: not one length a text, or one that is not positive.
    """
    if len(lengths) != len(features.texts) or any(length <= 0 for length in lengths):
        raise ValueError(f"lengths is {tuple(lengths)}; give one for each of {len(features.texts)} texts, above 0")
    kernel = np.eye(features.size)
    if features.texts:
        kernel = np.mean(
            [_squared_exponential(x, length) for x, length in zip(features.texts, lengths, strict=True)], 0
        )
    if features.number is not None and number_weight:
        known = np.isfinite(features.number)
        spread = features.number[known].std() if known.any() else 0.0
        if not spread:
            raise DataError("the items' number is the same for all, or not known of any; do without it")
        z = np.where(known, (features.number - features.number[known].mean()) / spread, 0.0)
        kernel = kernel + number_weight * np.outer(z, z)
    return kernel


def _squared_exponential(vectors: Floats, length: float) -> Floats:
    centred = vectors - vectors.mean(0)
    # Texts that are all the same have no direction.
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    return np.exp((unit @ unit.T - 1.0) / length**2)


@ANSWER_BASELINES.register("gp")
def gp(
    train: LabeledExamples,
    features: Features,
    *,
    lengths: Sequence[float] = (0.85, 1.0),
    number_weight: float = 0.2,
    quality: float = 0.03,
    item: float = 0.005,
    bias: float = 0.05,
    taste: float = 0.05,
    noise: float = 0.2,
    ageing: float = 1.12,
    order: bool = True,
) -> Predictor:
    """The process above. Every answer of the training questions is learnt from once, those in histories too.

    The user of an example is taken for a new one: b and t follow from the answers of its history alone.

    Args:
      train: the questions.
      features: of the items.
      lengths, number_weight: see `item_kernel`.
      quality, item, bias, taste, noise: variances, see the module.
      ageing: the noise of a history's answer at hand grows by this factor with each later one.
      order: False leaves the order of histories unread, as if `ageing` were 1.

    Returns:
      The score 4 (E[y] - ½), the tangent of the logit at ½.

    Raises:
      ValueError: a variance that is negative, or no noise, or an ageing that is not positive.
    """
    variances = {"quality": quality, "item": item, "bias": bias, "taste": taste}
    if wrong := [name for name, value in variances.items() if value < 0]:
        raise ValueError(f"{wrong[0]} is {variances[wrong[0]]}: a variance must be 0 or more")
    if noise <= 0 or ageing <= 0:
        raise ValueError(f"noise is {noise} and ageing {ageing}: both must be above 0")
    kernel = item_kernel(features, lengths, number_weight)
    user, items, answer = answers(train)
    average = float(answer.mean())

    # The items' posterior. Given g, users are independent, so that the precision of what they say of g is a sum:
    # A = Σ_u Zᵤᵀ (bias + taste · Kᵤᵤ + noise · I)⁻¹ Zᵤ, with Zᵤ [n_u, m] picking what u answered.
    asked, place = np.unique(items, return_inverse=True)
    precision, said = np.zeros((len(asked), len(asked))), np.zeros(len(asked))
    for rows in np.split(np.arange(len(user)), np.flatnonzero(np.diff(user)) + 1):
        own = bias + taste * kernel[np.ix_(items[rows], items[rows])] + noise * np.eye(len(rows))
        inverse = np.linalg.inv(own)
        precision[np.ix_(place[rows], place[rows])] += inverse
        said[place[rows]] += inverse @ (answer[rows] - average)
    prior = quality * kernel + item * np.eye(features.size)
    # mean = P* (I + A P)⁻¹ s, covariance = P** - P* (I + A P)⁻¹ A P*ᵀ, which needs no inverse of A: equations 2.23 and
    # 2.24 by the matrix inversion lemma.
    towards = prior[:, asked]
    system = np.eye(len(asked)) + precision @ prior[np.ix_(asked, asked)]
    solved = np.linalg.solve(system, np.column_stack([precision @ towards.T, said]))
    mean, covariance = towards @ solved[:, -1], prior - towards @ solved[:, :-1]
    covariance += bias + taste * kernel
    factor = ageing if order else 1.0

    def predict(rows: LabeledExamples) -> Floats:
        blocks = range(0, rows.size, _BLOCK)
        return np.concatenate([_answer(rows.take(np.arange(rows.size)[at : at + _BLOCK])) for at in blocks])

    def _answer(rows: LabeledExamples) -> Floats:
        """A user's answers under the items' posterior, given those in the history."""
        history, both = rows.history, rows.mask[:, :, None] & rows.mask[:, None, :]
        # Later answers in a history, itself left out.
        age = rows.mask[:, ::-1].cumsum(1)[:, ::-1] - rows.mask
        own = np.where(both, covariance[history[:, :, None], history[:, None, :]], 0.0)
        # A missing answer is an answer of its own, which says nothing.
        own += np.eye(history.shape[1]) * np.where(rows.mask, noise * factor**age, 1.0)[:, None, :]
        cross = np.where(rows.mask, covariance[rows.target[:, None], history], 0.0)
        residual = np.where(rows.mask, rows.liked - average - mean[history], 0.0)
        weights = np.linalg.solve(own, residual[:, :, None])[:, :, 0]
        return 4.0 * (average + mean[rows.target] + (cross * weights).sum(1) - 0.5)

    return predict


def answers(rows: LabeledExamples) -> tuple[np.ndarray, np.ndarray, Floats]:
    """All answers that questions hold, by user: user rows, item rows, and 1 for a like or 0, [m] each.

    An answer that stands in several questions counts once; of an item answered differently, the latest row counts.
    """
    width = rows.history.shape[1] + 1
    kept = np.column_stack([rows.mask, np.ones(rows.size, bool)]).ravel()
    user = np.repeat(rows.user, width)[kept].astype(np.int64)
    items = np.column_stack([rows.history, rows.target]).ravel()[kept].astype(np.int64)
    answer = np.column_stack([rows.liked, rows.label == 1]).ravel()[kept].astype(np.float64)
    pair = user * (items.max() + 1) + items
    # np.unique gives the first of equal ones, so the latest is put first.
    _, index = np.unique(pair[::-1], return_index=True)
    index = len(pair) - 1 - index
    return user[index], items[index], answer[index]
