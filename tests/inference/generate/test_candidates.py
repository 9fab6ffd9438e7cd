"""Likelihoods of candidates by a trie: those of each text by itself, and each token of the trie is read once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.inference.generate.candidates import CandidateScorer
from llm4rec_jax.inference.generate.likelihood import AnswerScorer
from llm4rec_jax.inference.generate.token_trie import build_trie, build_tries
from llm4rec_jax.sharding import make_mesh
from tests.helpers import tiny
from tests.models.decoders.parity import make_pair
from tests.models.decoders.test_families import CASES

MESH = make_mesh(devices=jax.devices()[:1])
LENGTHS = np.array([9, 4, 11])


def texts(count: int = 25, seed: int = 3) -> list[list[int]]:
    """Texts of one to six tokens out of three, so that many begin alike; one twice, and one within another."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(3, 6, rng.integers(1, 7)).tolist() for _ in range(count)]
    return [*drawn, drawn[0], [*drawn[1], 4], [7]]


def prompts() -> Tokens:
    ids = np.random.default_rng(0).integers(3, 41, (3, 11))
    ids[:, :2] = [5, 6]
    return Tokens((ids * (np.arange(11) < LENGTHS[:, None])).astype(np.int32), LENGTHS.astype(np.int32))


@pytest.mark.parametrize(
    ("family", "method"),
    [("llama, grouped", "lora"), ("gpt2", "frozen"), pytest.param("gemma2", "prefix", marks=pytest.mark.long)],
)
def test_likelihoods_are_those_of_each_text_by_itself(family, method, tmp_path):
    model_type, fields = CASES[family]
    pair = make_pair(CONFIG_MAPPING[model_type](**fields), tmp_path)
    tuned = tiny.method(method, None)
    delta = tuned.init(jax.random.key(0), pair.params)
    rng = np.random.default_rng(1)
    delta = jax.tree.map(lambda a: a + jnp.asarray(0.1 * rng.normal(size=a.shape), a.dtype), delta)
    weights, candidates = (pair.params, delta), texts()
    wanted = AnswerScorer(pair.decoder, tuned, MESH, candidates, cached=False)(weights, prompts())
    scorer = CandidateScorer(pair.decoder, tuned, MESH, candidates, chunk=8)
    np.testing.assert_allclose(scorer.all(weights, prompts()), wanted, atol=1e-5, rtol=1e-5)
    few = np.array([[0, 7, 2, 9], [1, 26, 27, 5], [25, 0, 3, 3]])
    found = scorer.some(weights, prompts(), few)
    np.testing.assert_allclose(found, np.take_along_axis(wanted, few, axis=1), atol=1e-5, rtol=1e-5)


def test_each_token_of_the_trie_is_read_once():
    given = texts()
    inner = {tuple(text[:end]) for text in given for end in range(1, len(text))}
    for chunk in (1, 3, 64):
        trie = build_trie(given, chunk)
        assert trie.tokens.size == -(-len(inner) // chunk) * chunk
    # Every edge of a text leads to its token, and edges are shared.
    tokens = np.concatenate([trie.edges.ravel(), trie.first])
    for text, numbers in zip(given, trie.texts, strict=True):
        assert tokens[numbers[: len(text)]].tolist() == text
    assert len(np.unique(trie.texts)) - 1 == len({tuple(t[:end]) for t in given for end in range(1, len(t) + 1)})


def test_tries_of_one_shape_and_a_text_without_tokens():
    tries = build_tries([[[1, 2, 3], [1, 2]], [[4], [5]]], 4)
    assert {len(array) for array in tries} == {2}
    with pytest.raises(ValueError, match="a text has no tokens"):
        build_trie([[1], []], 4)


def test_a_method_that_adds_tokens_is_refused(tmp_path):
    model_type, fields = CASES["llama, grouped"]
    pair = make_pair(CONFIG_MAPPING[model_type](**fields), tmp_path)
    with pytest.raises(ValueError, match="prompt puts tokens in front"):
        CandidateScorer(pair.decoder, tiny.method("prompt", None), MESH, [[1]])
