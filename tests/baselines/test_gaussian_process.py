"""The process over answers against scikit-learn's and against one dense solve; what of a question counts."""

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from llm4rec_jax.baselines import ANSWER_BASELINES
from llm4rec_jax.baselines.gaussian_process import answers, gp, item_kernel
from llm4rec_jax.baselines.rating import Features
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.labeled import LabeledExamples

ITEMS, USERS, H = 12, 4, 3
RNG = np.random.default_rng(0)
FEATURES = Features(ITEMS, (RNG.normal(size=(ITEMS, 5)), RNG.normal(size=(ITEMS, 4))), RNG.normal(1980, 10, ITEMS))


def made(n: int, seed: int) -> LabeledExamples:
    """Questions whose answers depend on user and item only, some with shorter histories."""
    rng = np.random.default_rng(seed)
    likes = np.random.default_rng(9).random((USERS, ITEMS)) < 0.6
    user = rng.integers(0, USERS, n).astype(np.int32)
    items = np.stack([rng.choice(ITEMS, H + 1, replace=False) for _ in range(n)]).astype(np.int32)
    mask = np.arange(H) >= rng.integers(0, H + 1, (n, 1))
    answer = likes[user[:, None], items]
    return LabeledExamples(
        user, np.where(mask, items[:, :H], 0), mask & answer[:, :H], mask, items[:, H], answer[:, H].astype(np.float32)
    )


TRAIN, ASKED = made(9, 1), made(7, 2)


def test_it_is_one_dense_solve():
    """All pairs and the question's own, of a user of its own, in one covariance matrix (equations 2.25 and 2.26)."""
    values = {"quality": 0.04, "item": 0.01, "bias": 0.03, "taste": 0.06, "noise": 0.15, "ageing": 1.3}
    kernel = item_kernel(FEATURES, (0.8, 1.1), 0.2)
    user, items, answer = answers(TRAIN)
    mean = answer.mean()
    found = gp(TRAIN, FEATURES, lengths=(0.8, 1.1), number_weight=0.2, **values)(ASKED)
    for row in range(ASKED.size):
        own = ASKED.history[row][ASKED.mask[row]]
        u, i = np.append(user, np.full(len(own) + 1, USERS)), np.concatenate([items, own, ASKED.target[row : row + 1]])
        same, k = u[:, None] == u, kernel[np.ix_(i, i)]
        prior = (
            values["quality"] * k + values["item"] * (i[:, None] == i) + same * (values["bias"] + values["taste"] * k)
        )
        age = np.arange(len(own))[::-1]
        noise = values["noise"] * np.append(np.ones(len(user)), values["ageing"] ** age)
        y = np.append(answer, ASKED.liked[row][ASKED.mask[row]]) - mean
        want = mean + prior[-1, :-1] @ np.linalg.solve(prior[:-1, :-1] + np.diag(noise), y)
        assert found[row] == pytest.approx(4 * (want - 0.5), abs=1e-9)


def test_of_one_kernel_it_is_scikit_learns():
    features = FEATURES._replace(texts=FEATURES.texts[:1], number=None)
    centred = features.texts[0] - features.texts[0].mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    found = gp(TRAIN, features, lengths=(0.7,), quality=0.05, item=0, bias=0, taste=0, noise=0.1, order=False)(ASKED)
    _, items, answer = answers(TRAIN)
    for row in range(ASKED.size):
        x = np.append(items, ASKED.history[row][ASKED.mask[row]])
        y = np.append(answer, ASKED.liked[row][ASKED.mask[row]]) - answer.mean()
        theirs = GaussianProcessRegressor(ConstantKernel(0.05) * RBF(0.7), alpha=0.1, optimizer=None).fit(unit[x], y)
        want = answer.mean() + theirs.predict(unit[ASKED.target[row : row + 1]])[0]
        assert found[row] == pytest.approx(4 * (want - 0.5), abs=1e-7)


def test_an_answer_counts_once_and_the_latest_holds():
    twice = TRAIN.take(np.tile(np.arange(TRAIN.size), 2))
    np.testing.assert_allclose(gp(twice, FEATURES)(ASKED), gp(TRAIN, FEATURES)(ASKED), atol=1e-12)
    changed = TRAIN._replace(label=1 - TRAIN.label)
    user, items, answer = answers(LabeledExamples(*map(np.concatenate, zip(TRAIN[:6], changed[:6], strict=True))))
    known = {(u, i): y for u, i, y in zip(user, items, answer, strict=True)}
    last = {(u, i): y for u, i, y in zip(TRAIN.user, TRAIN.target, changed.label, strict=True)}
    # A later row may have the same film in its history, as it was answered first.
    history = {(u, i) for u, own, m in zip(changed.user, changed.history, changed.mask, strict=True) for i in own[m]}
    assert all(known[pair] == y for pair, y in last.items() if pair not in history)
    assert len(known) == len(user)


def test_order_is_read_only_if_asked():
    full = ASKED.take(np.flatnonzero(ASKED.mask.all(1)))
    turned = full._replace(history=full.history[:, ::-1], liked=full.liked[:, ::-1])
    without = gp(TRAIN, FEATURES, order=False)
    np.testing.assert_allclose(without(turned), without(full), atol=1e-12)
    assert np.abs(gp(TRAIN, FEATURES)(turned) - gp(TRAIN, FEATURES)(full)).max() > 1e-4
    np.testing.assert_array_equal(without(full), gp(TRAIN, FEATURES, ageing=1.0)(full))


def test_what_is_masked_says_nothing():
    noise = np.random.default_rng(4)
    other = ASKED._replace(
        history=np.where(ASKED.mask, ASKED.history, noise.integers(0, ITEMS, ASKED.mask.shape)).astype(np.int32),
        liked=np.where(ASKED.mask, ASKED.liked, noise.random(ASKED.mask.shape) < 0.5),
    )
    for name, options in (("gp", {}), ("liked_share", {})):
        predict = ANSWER_BASELINES.build(name, TRAIN, FEATURES, **options)
        np.testing.assert_allclose(predict(other), predict(ASKED), atol=1e-12)


def test_without_texts_films_resemble_themselves_and_those_of_their_year():
    kernel = item_kernel(Features(3, (), np.array([1990.0, np.nan, 1970.0])), (), 0.2)
    np.testing.assert_allclose(kernel, np.eye(3) + 0.2 * np.outer([1, 0, -1], [1, 0, -1]))


def test_the_liked_share_is_laplaces_rule():
    rows = ASKED._replace(mask=np.ones((7, H), bool), liked=np.tile([True, False, True], (7, 1)))
    np.testing.assert_allclose(ANSWER_BASELINES.build("liked_share", TRAIN, FEATURES)(rows), np.log(3 / 2))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"taste": -0.1}, ValueError, "taste is -0.1: a variance must be 0 or more"),
        ({"noise": 0.0}, ValueError, "noise is 0.0"),
        ({"lengths": (1.0,)}, ValueError, "one for each of 2 texts"),
        ({"lenghts": (1.0, 1.0)}, ValueError, "did you mean 'lengths'"),
    ],
)
def test_misuse(options, error, words):
    with pytest.raises(error, match=words):
        ANSWER_BASELINES.build("gp", TRAIN, FEATURES, **options)


def test_a_number_that_says_nothing_is_refused():
    with pytest.raises(DataError, match="the same for all"):
        gp(TRAIN, FEATURES._replace(number=np.full(ITEMS, 1990.0)))
