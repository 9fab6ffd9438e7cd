"""Contexts and user embeddings are those of the plain model, and do not depend on what else is computed, or where."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest

from llm4rec_jax.data.batching.batch import TokenGroup, token_group
from llm4rec_jax.data.batching.buckets import text_bucket
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.inference.scorer import Prompts, RecommenderScorer
from llm4rec_jax.inference.text_encoder import BatchTextEncoder
from llm4rec_jax.models import text_encoder
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.recommender import Recommender, init, recommender
from llm4rec_jax.models.text_encoder import TextEncoder
from llm4rec_jax.models.users.base import UserInputs
from llm4rec_jax.peft import create, within
from llm4rec_jax.peft.core import Peft, forward
from llm4rec_jax.sharding import make_mesh

ITEMS, USERS, HISTORY = 150, 139, 7
KINDS = ("id", "text", "prompt")


def _tokens(seed: int, n: int) -> Tokens:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 25, n, dtype=np.int32)
    ids = np.where(np.arange(24) < lengths[:, None], rng.integers(1, 97, (n, 24)), 0)
    return Tokens(ids.astype(np.int32), lengths)


TEXTS = _tokens(0, ITEMS)
# A word for each item: a prompt is its history.
WORDS = np.random.default_rng(1).integers(1, 97, ITEMS, dtype=np.int32)


def _history() -> Sequences:
    rng = np.random.default_rng(2)
    lengths = np.r_[0, 1, HISTORY, 30, rng.integers(0, 20, USERS - 4)]
    return Sequences(np.r_[0, np.cumsum(lengths)], rng.integers(ITEMS, size=lengths.sum(), dtype=np.int32), None, None)


PAST = _history()


def write(histories: list[np.ndarray], users: np.ndarray) -> TokenGroup:
    lengths = np.array([1 + len(items) for items in histories], np.int32)
    ids = np.zeros((len(users), 16), np.int32)
    for row, items in zip(ids, histories, strict=True):
        row[0] = 96
        row[1 : 1 + len(items)] = WORDS[items]
    return token_group(Tokens(ids, lengths), np.arange(len(ids)), 16)


class Parts(NamedTuple):
    """A model with random parameters, its scorer, and all item and user embeddings, computed on one device."""

    model: Recommender
    method: Peft
    tokens: Tokens | None
    prompts: Prompts | None
    weights: tuple[dict, dict]
    scorer: RecommenderScorer
    item_embeddings: jax.Array
    user_embeddings: jax.Array


def everything(scorer: RecommenderScorer, weights: tuple[dict, dict]) -> tuple[jax.Array, jax.Array]:
    bound = scorer.of(*weights)
    item_embeddings = bound.item_embeddings()
    return item_embeddings, bound.user_embeddings(item_embeddings, PAST, np.arange(USERS))


@pytest.fixture(scope="module", params=KINDS)
def parts(request: pytest.FixtureRequest, bert_folder: Path) -> Parts:
    kind = request.param
    encoder, encoder_params = (None, None) if kind == "id" else pretrained.load(bert_folder, layers=1)
    users, options = ("text", {}) if kind == "prompt" else ("transformer", {"layers": 1})
    model = recommender(
        encoder=encoder, num_items=ITEMS if kind == "id" else None, users=users, width=16, options={"users": options}
    )
    params = init(model, jax.random.key(0), encoder_params)
    method = create("frozen") if encoder is None else within(create("lora", {"lora": {"rank": 2}}), "encoder")
    # LoRA starts as nothing: another delta is wanted.
    weights = params, jax.tree.map(lambda a: a + 0.1, method.init(jax.random.key(1), params))
    tokens, prompts = None if encoder is None else TEXTS, write if kind == "prompt" else None
    scorer = RecommenderScorer(model, method, make_mesh(devices=jax.devices()[:1]), tokens, prompts, HISTORY)
    return Parts(model, method, tokens, prompts, weights, scorer, *everything(scorer, weights))


def test_the_number_of_devices_changes_no_bit(parts):
    scorer = RecommenderScorer(parts.model, parts.method, make_mesh(), parts.tokens, parts.prompts, HISTORY)
    for one, eight in zip(
        (parts.item_embeddings, parts.user_embeddings), everything(scorer, parts.weights), strict=True
    ):
        np.testing.assert_array_equal(one, eight)
        assert np.isfinite(one).all()
        assert len(np.unique(one, axis=0)) > 100


@pytest.mark.parametrize("size", [1, 65])
def test_what_else_is_computed_changes_no_bit(parts, size):
    scorer, weights, tokens = parts.scorer, parts.weights, parts.tokens
    rng = np.random.default_rng(size)
    items, users = rng.permutation(ITEMS)[:size], rng.permutation(USERS)[:size]
    text = None
    if tokens is not None:
        encode = BatchTextEncoder(parts.model.text_encoder, parts.method, make_mesh(devices=jax.devices()[:1])).encode
        text = encode(weights, Tokens(tokens.ids[items], tokens.lengths[items]))
        np.testing.assert_array_equal(text, scorer.text(*weights)[items])
    np.testing.assert_array_equal(scorer.item_embeddings(weights, items, text), parts.item_embeddings[items])
    user_embeddings = scorer.user_embeddings(weights, parts.item_embeddings, PAST, users)
    np.testing.assert_array_equal(user_embeddings, parts.user_embeddings[users])


def test_embeddings_are_those_of_the_plain_model(parts):
    model = parts.model

    @partial(jax.jit, static_argnums=(0, 1))
    def apply(module: nn.Module, name: str | None, *args: Any) -> jax.Array:
        return forward(module, parts.method, *parts.weights, *args, apply=name)

    for item in (0, 149):
        features = {"ids": np.array([item])}
        if parts.tokens is not None:
            length = parts.tokens.lengths[item]
            ids, mask = parts.tokens.ids[item : item + 1, :length], np.ones((1, length), bool)
            features["text"] = apply(model.text_encoder, None, ids, mask)
        plain = apply(model.items, None, features)[0]
        np.testing.assert_allclose(plain, parts.item_embeddings[item], rtol=1e-4, atol=1e-5)
    # Histories of 1, of H and of more, of which the last H are read.
    for user in (1, 2, 3):
        read = PAST.of(user)[-HISTORY:]
        if parts.prompts is not None:
            ids = np.array([[96, *WORDS[read]]])
            inputs = UserInputs(prompt=apply(model.text_encoder, None, ids, np.ones_like(ids, bool)))
        else:
            inputs = UserInputs(parts.item_embeddings[read][None], np.ones((1, len(read)), bool))
        plain = apply(model.matcher, "user_embeddings", inputs)[0, -1]
        np.testing.assert_allclose(plain, parts.user_embeddings[user], rtol=1e-4, atol=1e-5)
    if parts.prompts is None:
        assert not parts.user_embeddings[0].any()


def test_text_that_is_known_is_not_computed_again(parts):
    if parts.tokens is None:
        pytest.skip("reads no text")
    text = parts.scorer.text(*parts.weights)
    np.testing.assert_array_equal(parts.scorer.of(*parts.weights, text).item_embeddings(), parts.item_embeddings)
    assert (parts.scorer.of(*parts.weights, text[::-1]).item_embeddings() != parts.item_embeddings).any()


def test_the_head_scores_pairs_and_stays_the_same_function(parts):
    pairs, params = parts.scorer.of(*parts.weights).head
    user_embeddings, item_embeddings = parts.user_embeddings[:5], parts.item_embeddings[:9]
    np.testing.assert_allclose(
        pairs(params, user_embeddings, item_embeddings), user_embeddings @ item_embeddings.T, rtol=1e-5, atol=1e-5
    )
    # So ranking is compiled once.
    assert pairs is parts.scorer.of(*parts.weights).head[0]


@pytest.mark.parametrize("layer", [0, 1, None])
def test_states_of_real_tokens_are_those_of_the_plain_model(bert_folder, layer):
    encoder, params = pretrained.load(bert_folder, layers=1)
    model = TextEncoder(encoder, POOLINGS.build("mean"))
    reader = BatchTextEncoder(model, create("frozen"), make_mesh())
    states = reader.hidden_states(({"encoder": params}, {}), TEXTS, layer)
    assert (states.shape, states.dtype) == (reader.hidden_states_shape(TEXTS, layer).shape, np.float32)
    longest = int(TEXTS.lengths.max())
    ids, mask = token_group(TEXTS, np.arange(len(TEXTS.ids)), longest)
    plain = model.apply({"params": {"encoder": params}}, layer, ids, mask, method="hidden_states")
    assert states.shape == np.shape(plain)
    np.testing.assert_allclose(states[mask], np.asarray(plain)[mask], rtol=1e-4, atol=1e-5)
    short = int(TEXTS.lengths.argmin())
    assert not states[short, text_bucket(int(TEXTS.lengths[short])) :].any()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "attention"])
def test_packed_texts_have_the_vectors_that_each_has_alone(bert_folder, pooling):
    model = TextEncoder(pretrained.load(bert_folder, layers=1)[0], POOLINGS.build(pooling))
    params = text_encoder.init(model, jax.random.key(0))
    packed = TextEncoder(pretrained.load(bert_folder, layers=1, packing=True)[0], model.pooling)
    alone, together = (
        BatchTextEncoder(m, create("frozen"), make_mesh()).encode((params, {}), TEXTS) for m in (model, packed)
    )
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"packing: rows hold several texts, but lora\+prompt puts tokens in front"):
        BatchTextEncoder(packed, within(create("lora+prompt"), "encoder"), make_mesh())


def test_a_scorer_of_ids_says_that_it_has_no_texts():
    model = recommender(num_items=ITEMS, users="mean", width=4)
    scorer = RecommenderScorer(model, create("frozen"), make_mesh(), None, None, HISTORY)
    with pytest.raises(ValueError, match="has no texts of items: give it tokens"):
        scorer.text({}, {})
    with pytest.raises(ValueError, match="reads no texts: its items are ids only"):
        _ = model.text_encoder
