"""Every combination of parts, and the combinations that make no sense."""

import re
from itertools import cycle, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.models.encoders.bert import Bert, BertConfig
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.heads import HEADS
from llm4rec_jax.models.recommender import PROJECTIONS, init, recommender
from llm4rec_jax.models.users import base as user_models
from llm4rec_jax.models.users.base import USERS

ENCODER = Bert(
    BertConfig(
        vocab_size=11,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
)
# U = 5 items of up to 4 tokens, two histories of up to 3.
ITEMS = np.array([3, 0, 6, 2, 5])
TOKENS_MASK = np.arange(4) < np.array([4, 2, 1, 3, 4])[:, None]
TOKENS = np.random.default_rng(0).integers(1, 11, (5, 4)) * TOKENS_MASK
HISTORY, HISTORY_MASK = np.array([[0, 3, 1], [4, 0, 0]]), np.array([[1, 1, 1], [1, 0, 0]], bool)
ITEMS_IN_ALL = 7

KINDS = ("text", "ids", "both")


def build(kind: str, **options):
    parts = {"text": {"encoder": ENCODER}, "ids": {"ids": ITEMS_IN_ALL}}
    return recommender(**(parts["text"] | parts["ids"] if kind == "both" else parts[kind]), **options)


def shapes(model, params) -> tuple[int, ...]:
    """The shape of the scores of all user embeddings against all item embeddings, by the calls that training makes."""

    def scores(params):
        def run(method, *args):
            return model.apply({"params": params}, *args, method=method)

        text = None if model.encoder is None else run("encode", TOKENS, TOKENS_MASK)
        item_embeddings = run("context", ITEMS, text)
        assert item_embeddings.shape == (5, model.width)
        if model.users is None:
            user_embeddings = run("prompt_profile", run("encode", TOKENS[:2], TOKENS_MASK[:2]))
        else:
            user_embeddings = run("user_embeddings", item_embeddings[HISTORY], HISTORY_MASK)
            assert user_embeddings.shape == (2, 3, model.width)
            user_embeddings = user_models.last(user_embeddings, HISTORY_MASK)
        return run("score_matrix", user_embeddings, item_embeddings)

    return jax.eval_shape(scores, params).shape


# Every user model with every head, and every projection with every pooling, in turn with the former.
# Those that read histories; tests/training/test_loop.py trains the others.
READERS = sorted(name for name, model in USERS.items() if user_models.reads(model) != "user")
PAIRS = list(product([*READERS, "text"], sorted(HEADS)))
ROWS = list(zip(PAIRS, cycle(product([*sorted(PROJECTIONS), None], sorted(POOLINGS)))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("users", [*READERS, "text"])
def test_every_combination_gives_scores(kind, users):
    if (kind, users) == ("ids", "text"):
        pytest.skip("nothing to read the history with")
    for (_, head), (project, pooling) in [row for row in ROWS if row[0][0] == users][:: 2 if kind == "both" else 1]:
        model = build(kind, users=users, head=head, project=project, pooling=pooling, width=8)
        params = jax.eval_shape(lambda key, m=model: init(m, key), jax.random.key(0))
        assert shapes(model, params) == (2, 5)
        assert model.width == (12 if project is None and kind != "ids" else 8)
        assert ("encoder" in params, "ids" in params) == (kind != "ids", kind != "text")
        assert ("project" in params) == (kind != "ids" and project is not None)
        assert ("project_prompt" in params) == (users == "text" and project is not None)


def drawn(model):
    """Random parameters, norms and biases included."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init(model, jax.random.key(0)))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0.0, 0.3, s.shape), s.dtype), shapes)


@pytest.fixture(scope="module")
def text_model():
    model = build("text", users="mean", head="dot", project="mlp", width=8)
    return model, drawn(model)


def run(model, params, method, *args):
    return model.apply({"params": params}, *args, method=method)


def test_parts_as_numpy_has_them(text_model):
    model, params = text_model
    states = np.asarray(ENCODER.apply({"params": params["encoder"]}, TOKENS, TOKENS_MASK))
    text = run(model, params, "encode", TOKENS, TOKENS_MASK)
    assert text.dtype == jnp.float32
    means = np.stack([s[m].mean(0) for s, m in zip(states, TOKENS_MASK, strict=True)])
    np.testing.assert_allclose(text, means, atol=1e-6)
    p = params["project"]
    x = (means - means.mean(1, keepdims=True)) / np.sqrt(means.var(1, keepdims=True) + 1e-6)
    x = (x * p["norm"]["scale"] + p["norm"]["bias"]) @ p["hidden"]["kernel"] + p["hidden"]["bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    item_embeddings = run(model, params, "context", ITEMS, text)
    np.testing.assert_allclose(item_embeddings, x @ p["output"]["kernel"] + p["output"]["bias"], atol=1e-4)


def test_text_and_ids_are_added():
    model = build("both", users="mean", project="linear", width=8)
    params = drawn(model)
    assert params["ids"]["embedding"].shape == (ITEMS_IN_ALL, 8)
    text = run(model, params, "encode", TOKENS, TOKENS_MASK)
    p = params["project"]["output"]
    want = text @ p["kernel"] + p["bias"] + params["ids"]["embedding"][ITEMS]
    np.testing.assert_allclose(run(model, params, "context", ITEMS, text), want, atol=1e-6)


def test_ids_alone_are_the_embedding():
    model = build("ids", users="mean", width=8)
    params = drawn(model)
    assert set(params) == {"ids"}
    np.testing.assert_array_equal(run(model, params, "context", ITEMS, None), params["ids"]["embedding"][ITEMS])


def test_a_prompt_has_a_projection_of_its_own():
    model = build("text", users="text", project="linear", width=8)
    params = drawn(model)
    text = run(model, params, "encode", TOKENS, TOKENS_MASK)
    p = params["project_prompt"]["output"]
    np.testing.assert_allclose(run(model, params, "prompt_profile", text), text @ p["kernel"] + p["bias"], atol=1e-6)
    assert np.abs(p["kernel"] - params["project"]["output"]["kernel"]).max() > 0.01


def test_without_projection_vectors_are_the_encoders():
    model = build("text", users="text", project=None)
    params = drawn(model)
    text = run(model, params, "encode", TOKENS, TOKENS_MASK)
    np.testing.assert_array_equal(run(model, params, "prompt_profile", text), text)
    np.testing.assert_array_equal(run(model, params, "context", ITEMS, text), text)


def test_init_keeps_the_given_encoder_arrays(text_model):
    model, other = text_model
    given = other["encoder"]
    params = init(model, jax.random.key(0), given)
    assert params["encoder"] is given
    whole = init(model, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, whole)
    for name in set(params) - {"encoder"}:
        jax.tree.map(np.testing.assert_array_equal, params[name], whole[name])
    other = init(model, jax.random.key(1), given)["project"]["output"]["kernel"]
    assert np.abs(other - params["project"]["output"]["kernel"]).max() > 0.01


def test_projection_dropout_needs_a_dropout_rng(text_model):
    params = text_model[1]
    model = build("text", users="mean", width=8, project_options={"dropout": 0.5})
    text = jnp.tile(jnp.arange(12.0), (2, 1))
    plain = run(model, params, "context", ITEMS[:2], text)
    np.testing.assert_array_equal(plain[0], plain[1])
    variables = {"params": params}
    dropped = model.apply(variables, ITEMS[:2], text, method="context", rngs={"dropout": jax.random.key(0)})
    assert np.abs(dropped[0] - dropped[1]).max() > 1e-3


def test_options_reach_their_parts():
    model = build(
        "text",
        users="transformer",
        head="cosine",
        width=8,
        user_options={"layers": 1, "positions": 3},
        head_options={"temperature": 0.5},
        project_options={"hidden": 5},
    )
    params = drawn(model)
    assert set(params["users"]) == {"position", "layer_0", "norm"}
    assert params["users"]["position"]["embedding"].shape == (3, 8)
    assert params["project"]["hidden"]["kernel"].shape == (12, 5)
    assert float(run(model, params, "score", jnp.ones(8), jnp.ones(8))) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs text (an encoder), ids (the number of items), or both"),
        ({"ids": 3, "users": "text"}, "there is no encoder"),
        ({"ids": 3, "users": "transfomer"}, "unknown user model 'transfomer'; did you mean 'transformer'?"),
        ({"ids": 3, "head": "dott"}, "unknown scoring head 'dott'; did you mean 'dot'?"),
        ({"encoder": ENCODER, "pooling": "men"}, "unknown pooling 'men'; did you mean 'mean'?"),
        ({"encoder": ENCODER, "project": "mpl"}, "unknown projection 'mpl'; did you mean 'mlp'?"),
        (
            {"ids": 3, "user_options": {"layer": 1}},
            "option of user model 'transformer': 'layer'; did you mean 'layers'",
        ),
        ({"ids": 3, "head_options": {"hidden": 1}}, "unknown option of scoring head 'dot': 'hidden'"),
        ({"encoder": ENCODER, "project_options": {"hiden": 1}}, "did you mean 'hidden'?"),
    ],
)
def test_parts_that_do_not_exist_or_go_together(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recommender(**options)
