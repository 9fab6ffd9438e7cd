"""Every combination of parts, and the combinations that make no sense."""

import re
from itertools import cycle, product

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.models.encoders.bert import Bert, BertConfig
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.graphs.base import GRAPHS
from llm4rec_jax.models.heads import HEADS
from llm4rec_jax.models.items.item_encoder import FeatureSet
from llm4rec_jax.models.items.projection import PROJECTIONS
from llm4rec_jax.models.recommender import init, recommender, user_model_name
from llm4rec_jax.models.users.base import USERS, UserInputs, at_last_position

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
    parts = {"text": {"encoder": ENCODER}, "ids": {"num_items": ITEMS_IN_ALL}}
    return recommender(**(parts["text"] | parts["ids"] if kind == "both" else parts[kind]), **options)


def run(module, params, *args, method=None):
    return module.apply({"params": params}, *args, method=method)


def shapes(model, params) -> tuple[int, ...]:
    """The shape of the scores of all user embeddings against all item embeddings, by the calls that training makes."""

    def scores(params):
        features = {"ids": ITEMS}
        if model.text is not None:
            features["text"] = run(model.text, params, TOKENS, TOKENS_MASK)
        item_embeddings = run(model.items, params, features)
        assert item_embeddings.shape == (5, model.width)
        prompt = run(model.text, params, TOKENS[:2], TOKENS_MASK[:2]) if model.users.inputs == "prompt" else None
        inputs = UserInputs(item_embeddings[HISTORY], HISTORY_MASK, prompt=prompt)
        user_embeddings = run(model.matcher, params, inputs, method="user_embeddings")
        assert user_embeddings.shape == (2, 1 if model.users.inputs == "prompt" else 3, model.width)
        if model.users.inputs != "prompt":
            user_embeddings = at_last_position(user_embeddings, HISTORY_MASK)[:, None]
        return run(model.matcher, params, user_embeddings[:, 0], item_embeddings, method="score_matrix")

    return jax.eval_shape(scores, params).shape


# Every user model with every head, and every projection with every pooling, in turn with the former.
# Those that read histories; tests/training/test_loop.py trains the others.
READERS = sorted(name for name, model in USERS.items() if model.inputs != "user_id")
PAIRS = list(product(READERS, sorted(HEADS)))
ROWS = list(zip(PAIRS, cycle(product(sorted(PROJECTIONS), sorted(POOLINGS)))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("users", READERS)
def test_every_combination_gives_scores(kind, users):
    if (kind, users) == ("ids", "text"):
        pytest.skip("nothing to read the history with")
    for (_, head), (project, pooling) in [row for row in ROWS if row[0][0] == users][:: 2 if kind == "both" else 1]:
        model = build(kind, users=users, head=head, project=project, pooling=pooling, width=8)
        params = jax.eval_shape(lambda key, m=model: init(m, key), jax.random.key(0))
        assert shapes(model, params) == (2, 5)
        assert model.width == (12 if project == "none" and kind != "ids" else 8)
        assert ("encoder" in params, "ids" in params) == (kind != "ids", kind != "text")
        assert ("project" in params) == (kind != "ids" and project != "none")
        assert ("project_prompt" in params) == (users == "text" and project != "none")


def drawn(model):
    """Random parameters, norms and biases included."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init(model, jax.random.key(0)))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0.0, 0.3, s.shape), s.dtype), shapes)


@pytest.fixture(scope="module")
def text_model():
    model = build("text", users="mean", head="dot", project="mlp", width=8)
    return model, drawn(model)


@pytest.mark.parametrize("project", ["mlp", "linear"])
def test_scores_may_begin_near_zero(project):
    def scores(scale: float) -> np.ndarray:
        model = build("text", users="transformer", project=project, width=8, options={"project": {"init_scale": scale}})
        params = init(model, jax.random.key(0))
        items = run(model.items, params, {"text": jnp.asarray(np.random.default_rng(0).normal(size=(5, 12)))})
        inputs = UserInputs(items[HISTORY], jnp.asarray(HISTORY_MASK))
        users = run(model.matcher, params, inputs, method="user_embeddings")
        return np.asarray(users @ items.T)

    assert np.abs(scores(0.01)).max() < 0.1 < np.abs(scores(1.0)).max()


def of_prompt(model, params, text):
    """The user embeddings of prompts with these vectors."""
    return run(model.matcher, params, UserInputs(prompt=text), method="user_embeddings")[:, 0]


def test_parts_as_numpy_has_them(text_model):
    model, params = text_model
    states = np.asarray(ENCODER.apply({"params": params["encoder"]}, TOKENS, TOKENS_MASK))
    text = run(model.text, params, TOKENS, TOKENS_MASK)
    assert text.dtype == jnp.float32
    means = np.stack([s[m].mean(0) for s, m in zip(states, TOKENS_MASK, strict=True)])
    np.testing.assert_allclose(text, means, atol=1e-6)
    p = params["project"]
    x = (means - means.mean(1, keepdims=True)) / np.sqrt(means.var(1, keepdims=True) + 1e-6)
    x = (x * p["norm"]["scale"] + p["norm"]["bias"]) @ p["hidden"]["kernel"] + p["hidden"]["bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    item_embeddings = run(model.items, params, {"ids": ITEMS, "text": text})
    np.testing.assert_allclose(item_embeddings, x @ p["output"]["kernel"] + p["output"]["bias"], atol=1e-4)


def test_text_and_ids_are_added():
    model = build("both", users="mean", project="linear", width=8)
    params = drawn(model)
    assert params["ids"]["embedding"].shape == (ITEMS_IN_ALL, 8)
    text = run(model.text, params, TOKENS, TOKENS_MASK)
    p = params["project"]["output"]
    want = text @ p["kernel"] + p["bias"] + params["ids"]["embedding"][ITEMS]
    np.testing.assert_allclose(run(model.items, params, {"ids": ITEMS, "text": text}), want, atol=1e-6)


def test_ids_alone_are_the_embedding():
    model = build("ids", users="mean", width=8)
    params = drawn(model)
    assert set(params) == {"ids"}
    np.testing.assert_array_equal(run(model.items, params, {"ids": ITEMS}), params["ids"]["embedding"][ITEMS])


def test_a_prompt_has_a_projection_of_its_own():
    model = build("text", users="text", project="linear", width=8)
    params = drawn(model)
    text = run(model.text, params, TOKENS, TOKENS_MASK)
    p = params["project_prompt"]["output"]
    np.testing.assert_allclose(of_prompt(model, params, text), text @ p["kernel"] + p["bias"], atol=1e-6)
    assert np.abs(p["kernel"] - params["project"]["output"]["kernel"]).max() > 0.01


def test_without_projection_vectors_are_the_encoders():
    model = build("text", users="text", project=None)
    params = drawn(model)
    text = run(model.text, params, TOKENS, TOKENS_MASK)
    np.testing.assert_array_equal(of_prompt(model, params, text), text)
    np.testing.assert_array_equal(run(model.items, params, {"ids": ITEMS, "text": text}), text)


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
    model = build("text", users="mean", width=8, options={"project": {"dropout": 0.5}})
    text = jnp.tile(jnp.arange(12.0), (2, 1))
    plain = run(model.items, params, {"text": text})
    np.testing.assert_array_equal(plain[0], plain[1])
    variables = {"params": params}
    dropped = model.items.apply(variables, {"text": text}, rngs={"dropout": jax.random.key(0)})
    assert np.abs(dropped[0] - dropped[1]).max() > 1e-3


def test_options_reach_their_parts():
    model = build(
        "text",
        users="transformer",
        head="cosine",
        width=8,
        options={
            "users": {"layers": 1, "positions": 3},
            "head": {"temperature": 0.5},
            "project": {"hidden": 5},
        },
    )
    params = drawn(model)
    assert set(params["users"]) == {"position", "layer_0", "norm"}
    assert params["users"]["position"]["embedding"].shape == (3, 8)
    assert params["project"]["hidden"]["kernel"].shape == (12, 5)
    assert float(run(model.matcher, params, jnp.ones(8), jnp.ones(8), method="score")) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs text (an encoder), ids (the number of items), or further features"),
        ({"num_items": 3, "users": "text"}, "there is no encoder"),
        ({"num_items": 3, "users": "mf"}, "users='mf' has a vector for each user: give num_users"),
        ({"num_items": 3, "num_users": 2, "users": "lightgcn"}, "give num_items and edges, and no encoder"),
        (
            {"num_items": 3, "features": FeatureSet(fusion="som")},
            "unknown fusion of features 'som'; did you mean 'sum'?",
        ),
        ({"num_items": 3, "users": "transfomer"}, "unknown user model 'transfomer'; did you mean 'transformer'?"),
        ({"num_items": 3, "head": "dott"}, "unknown scoring head 'dott'; did you mean 'dot'?"),
        ({"encoder": ENCODER, "pooling": "men"}, "unknown pooling 'men'; did you mean 'mean'?"),
        ({"encoder": ENCODER, "project": "mpl"}, "unknown projection 'mpl'; did you mean 'mlp'?"),
        (
            {"num_items": 3, "options": {"users": {"layer": 1}}},
            "option of user model 'transformer': 'layer'; did you mean 'layers'",
        ),
        ({"num_items": 3, "options": {"head": {"hidden": 1}}}, "unknown option of scoring head 'dot': 'hidden'"),
        ({"encoder": ENCODER, "options": {"project": {"hiden": 1}}}, "did you mean 'hidden'?"),
    ],
)
def test_parts_that_do_not_exist_or_go_together(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recommender(**options)


def test_features_can_be_concatenated():
    features = FeatureSet(fusion="concat", fusion_options={"hidden": None})
    model = build("both", users="mean", project="linear", width=8, features=features)
    params = drawn(model)
    text = run(model.text, params, TOKENS, TOKENS_MASK)
    p, c = params["project"]["output"], params["fusion"]["output"]
    concatenated = np.concatenate([text @ p["kernel"] + p["bias"], params["ids"]["embedding"][ITEMS]], axis=1)
    want = concatenated @ c["kernel"] + c["bias"]
    np.testing.assert_allclose(run(model.items, params, {"ids": ITEMS, "text": text}), want, atol=1e-5)


def test_rows_of_ids_may_be_looked_up_before():
    model = build("ids", users="mean", tower="linear", width=8)
    params = drawn(model)
    rows = params["ids"]["embedding"][ITEMS]
    without_table = {"tower": params["tower"]}
    looked_up = run(model.items, without_table, {"ids": rows})
    np.testing.assert_array_equal(looked_up, run(model.items, params, {"ids": ITEMS}))


@pytest.mark.parametrize(
    ("former", "name"), [("bidirectional", "bert4rec"), ("graph", "lightgcn"), ("id", "mf"), ("tower", "two_tower")]
)
def test_former_names_of_user_models(former, name, monkeypatch):
    for registry in (USERS, GRAPHS):
        monkeypatch.setattr(registry, "_warned", set())
    with pytest.warns(FutureWarning, match=f"'{former}' is now called '{name}'"):
        assert user_model_name(former) == name
    assert user_model_name(name) == name


def test_a_pooling_of_ones_own_is_one_class(monkeypatch):
    class First(nn.Module):
        def __call__(self, states, mask):
            return states[:, 0]

    monkeypatch.setitem(POOLINGS, "first", First)
    model = build("text", users="mean", pooling="first", project="none")
    params = drawn(model)
    states = ENCODER.apply({"params": params["encoder"]}, TOKENS, TOKENS_MASK)
    np.testing.assert_array_equal(run(model.text, params, TOKENS, TOKENS_MASK), states[:, 0])
