"""Log-likelihoods of answers: by transformers, whole and with the prompts' keys and values kept, all the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm4rec_jax import peft
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.evaluation import metrics
from llm4rec_jax.inference.generate.likelihood import AnswerScorer, common_beginning, expected_ratings
from llm4rec_jax.sharding import make_mesh
from tests.helpers import tiny
from tests.models.decoders.parity import Pair, make_pair
from tests.models.decoders.test_families import CASES

ANSWERS = {"one token": [[7], [9]], "several": [[7, 8, 11], [9], [7, 12]]}
MESH = make_mesh(devices=jax.devices()[:1])
LENGTHS = np.array([9, 4, 11, 6, 6])


@pytest.fixture(scope="module", params=["llama, grouped", pytest.param("gemma2", marks=pytest.mark.long)])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    model_type, fields = CASES[request.param]
    return make_pair(CONFIG_MAPPING[model_type](**fields), tmp_path_factory.mktemp("model"))


def prompts() -> Tokens:
    """Five prompts that begin with the same two tokens."""
    ids = np.random.default_rng(0).integers(3, 41, (5, 11))
    ids[:, :2] = [5, 6]
    return Tokens((ids * (np.arange(11) < LENGTHS[:, None])).astype(np.int32), LENGTHS.astype(np.int32))


def theirs(pair: Pair, answers: list[list[int]]) -> np.ndarray:
    found = []
    for ids, length in zip(*prompts(), strict=True):
        for answer in answers:
            text = torch.tensor([[*ids[:length], *answer]])
            with torch.no_grad():
                scores = torch.log_softmax(pair.torch(text).logits[0], -1)
            places = range(length - 1, length - 1 + len(answer))
            found.append(sum(float(scores[at, token]) for at, token in zip(places, answer, strict=True)))
    return np.array(found).reshape(len(LENGTHS), -1)


@pytest.mark.parametrize("kind", ANSWERS)
def test_likelihoods_are_those_of_transformers(pair, kind):
    answers = ANSWERS[kind]
    wanted = theirs(pair, answers)
    for cached in (True, False):
        score = AnswerScorer(pair.decoder, peft.create("frozen"), MESH, answers, cached)
        np.testing.assert_allclose(score((pair.params, {}), prompts()), wanted, atol=2e-5)


@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_a_method_scores_the_same_with_a_cache(pair, name):
    method, rng = tiny.method(name, None), np.random.default_rng(1)
    delta = method.init(jax.random.key(0), pair.params)
    delta = jax.tree.map(lambda a: a + jnp.asarray(0.1 * rng.normal(size=a.shape), a.dtype), delta)
    weights, answers = (pair.params, delta), ANSWERS["several"]
    ours, whole = (
        AnswerScorer(pair.decoder, method, MESH, answers, cached)(weights, prompts()) for cached in (True, False)
    )
    np.testing.assert_allclose(ours, whole, atol=1e-5)
    assert np.abs(ours - theirs(pair, answers)).max() > 1e-2


def test_a_method_that_adds_tokens_has_texts_read_whole(pair):
    method = tiny.method("prompt", None)
    weights = pair.params, method.init(jax.random.key(0), pair.params)
    scores = AnswerScorer(pair.decoder, method, MESH, [[7], [9]])(weights, prompts())
    assert scores.shape == (5, 2)
    with pytest.raises(ValueError, match="prompt puts tokens in front"):
        AnswerScorer(pair.decoder, method, MESH, [[7], [9]], cached=True)
    with pytest.raises(ValueError, match="an answer has no tokens"):
        AnswerScorer(pair.decoder, method, MESH, [[7], []])


def test_ratings_are_expectations_over_the_answers_of_the_scale(pair):
    answers, given = [[7], [8], [9]], np.array([1.0, 3.0, 2.0, 1.0, 3.0])
    found = AnswerScorer(pair.decoder, peft.create("frozen"), MESH, answers)((pair.params, {}), prompts())
    predicted = expected_ratings(found, [1, 2, 3])
    wanted = (torch.softmax(torch.tensor(theirs(pair, answers)), 1) * torch.tensor([1, 2, 3])).sum(1).numpy()
    np.testing.assert_allclose(predicted, wanted, atol=1e-5)
    assert metrics.rmse(predicted, given) == pytest.approx(mean_squared_error(given, wanted) ** 0.5, abs=1e-5)
    assert metrics.mae(predicted, given) == pytest.approx(mean_absolute_error(given, wanted), abs=1e-5)


def test_each_prompt_keeps_a_token_of_its_own():
    same = np.array([[5, 6, 7], [5, 6, 0]])
    assert common_beginning(Tokens(same, np.array([3, 2]))) == 1
    assert common_beginning(prompts()) == 2
    assert common_beginning(Tokens(same[:, 1:] + [[0], [1]], np.array([2, 1]))) == 0
