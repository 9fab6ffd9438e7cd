"""Heads of the pointwise task: they start at the liked share, and attend as their equation says."""

import jax
import numpy as np
import pytest

from llm4rec_jax.models.rating import RATING_HEADS
from llm4rec_jax.tasks import rating_scoring
from llm4rec_jax.tasks.rating_scoring import Questions, logits

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(9, 6)).astype(np.float32)
CENTRE = VECTORS.mean(0)
MASK = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 0]], np.float32)
ASKED = Questions(
    RNG.integers(0, 9, (3, 3)), RNG.integers(0, 9, 3), MASK * (RNG.random((3, 3)) < 0.5), MASK,
    np.array([1, 0, 1], np.float32),
)  # fmt: skip


def moved(head, scale: float = 1.0):
    """Parameters away from the start."""
    start = rating_scoring.start(head, 6, jax.random.key(0))
    return jax.tree.map(lambda a: a + scale * RNG.normal(size=a.shape).astype(np.float32), start)


@pytest.mark.parametrize("name", RATING_HEADS)
def test_the_start_is_the_liked_share(name):
    head = RATING_HEADS.build(name)
    params = rating_scoring.start(head, 6, jax.random.key(0))
    asked = ASKED if head.reads_history else ASKED._replace(history=None)
    scores, labels, counts = logits(head, params, CENTRE, VECTORS, asked)
    likes = (ASKED.liked * MASK).sum(1)
    np.testing.assert_allclose(scores[:, 0], np.log((likes + 1) / (MASK.sum(1) - likes + 1)), atol=1e-6)
    np.testing.assert_array_equal(labels[:, 0], ASKED.label)
    assert counts.shape == (3, 1)


def test_without_a_prior_a_prompt_is_all_that_is_read():
    head = RATING_HEADS.build("text", prior=False)
    params = moved(head)
    asked = ASKED._replace(history=None)
    unit = (VECTORS - CENTRE)[ASKED.target]
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    want = 6**0.5 * unit @ params["output"]["kernel"][:, 0] + params["output"]["bias"]
    np.testing.assert_allclose(logits(head, params, CENTRE, VECTORS, asked)[0][:, 0], want, atol=1e-5)


def test_signed_attention_is_its_equation():
    head = RATING_HEADS.build("hierarchical")
    p = moved(head, 0.5)
    unit = VECTORS - CENTRE
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    quality = np.asarray(unit @ p["quality"]["kernel"])[:, 0]
    scores = logits(head, p, CENTRE, VECTORS, ASKED)[0]
    for row in range(3):
        kept = np.flatnonzero(MASK[row])
        own, target, n = ASKED.history[row][kept], ASKED.target[row], len(kept)
        weights = np.exp(float(p["closeness"]) * unit[own] @ unit[target] - float(p["recency"]) * np.arange(n)[::-1])
        weights = weights / weights.sum() if n else weights
        share = weights @ ASKED.liked[row][kept]
        want = p["mean"] + p["share"] * np.log((share * n + 1) / ((1 - share) * n + 1))
        want += quality[target] - p["discount"] * (weights @ quality[own])
        np.testing.assert_allclose(scores[row, 0], want, atol=1e-5)


def test_an_answer_of_a_history_is_asked_for_without_being_seen():
    head = RATING_HEADS.build("hierarchical")
    params = moved(head, 0.5)

    def every(liked: np.ndarray):
        return logits(head, params, CENTRE, VECTORS, ASKED._replace(liked=liked), every=True)

    scores, labels, counts = every(ASKED.liked)
    np.testing.assert_array_equal(labels, np.column_stack([ASKED.liked, ASKED.label]))
    np.testing.assert_array_equal(counts, np.column_stack([MASK, np.ones(3)]))
    np.testing.assert_allclose(scores[:, -1], logits(head, params, CENTRE, VECTORS, ASKED)[0][:, 0], atol=1e-6)
    for place in range(3):
        other = ASKED.liked.copy()
        other[0, place] = 1 - other[0, place]
        changed = np.abs(np.asarray(every(other)[0] - scores)[0]) > 1e-6
        np.testing.assert_array_equal(changed, np.arange(4) != place)
